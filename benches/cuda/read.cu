// Reads memory and does nothing else: what of a device's bandwidth a kernel can have.
extern "C" __global__ void __launch_bounds__(256)
    read_words(const uint4* __restrict__ from, unsigned long long bytes, unsigned* result) {
    const unsigned long long count = bytes / 16, step = 1ull * gridDim.x * blockDim.x;
    unsigned long long i = 1ull * blockIdx.x * blockDim.x + threadIdx.x;
    unsigned all = 0;
    for (; i + 3 * step < count; i += 4 * step) {
        const uint4 a = from[i], b = from[i + step], c = from[i + 2 * step], d = from[i + 3 * step];
        all ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
    }
    for (; i < count; i += step) {
        const uint4 a = from[i];
        all ^= a.x ^ a.y ^ a.z ^ a.w;
    }
    // Hardly ever so; without it there would be no reason to read.
    if (all == 0) *result = 1;
}
