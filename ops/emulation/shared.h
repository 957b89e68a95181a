// A block's LDS, with a record of which thread accessed what, and when.
#ifndef SPARK_EMULATION_SHARED_H
#define SPARK_EMULATION_SHARED_H

#include <cstdint>
#include <vector>

namespace emulation {

// Accesses of one thread; later accesses of other threads conflict until a barrier in which both took part. Barriers
// of the block and of each wave are counted.
class SharedMemory {
  public:
    // Clears what a block left behind.
    void reset(uint32_t bytes, unsigned wave_size) {
        wave = wave_size;
        memory.assign(bytes, 0xcd);
        written.assign(bytes, Access{});
        read.assign(bytes, Access{});
    }
    unsigned char* data() { return memory.data(); }
    uint32_t size() const { return static_cast<uint32_t>(memory.size()); }

    // The error of the access of `thread`, null if there is none.
    const char* check_read(uint32_t byte, unsigned thread, uint32_t block_epoch, uint32_t wave_epoch) {
        const Access& w = written[byte];
        if (w.thread == NOBODY) return "reads LDS that nobody wrote";
        if (conflicts(w, thread, block_epoch, wave_epoch))
            return "reads LDS that another thread wrote, without a barrier between";
        Access& r = read[byte];
        const bool fresh = r.thread == NOBODY || r.block_epoch != block_epoch ||
                           ((r.thread & ~MANY) / wave == thread / wave && r.wave_epoch != wave_epoch);
        if (fresh || r.thread == thread) {
            r = {static_cast<uint16_t>(thread), block_epoch, wave_epoch};
        } else {
            // Several readers: of one wave, or of several.
            const unsigned reader = r.thread & ~MANY;
            const bool same = r.thread != EVERYBODY && reader / wave == thread / wave;
            r = {static_cast<uint16_t>(same ? (MANY | reader) : EVERYBODY), block_epoch, wave_epoch};
        }
        return nullptr;
    }
    const char* check_write(uint32_t byte, unsigned thread, uint32_t block_epoch, uint32_t wave_epoch) {
        if (written[byte].thread != NOBODY && conflicts(written[byte], thread, block_epoch, wave_epoch)) {
            return "writes LDS that another thread wrote, without a barrier between";
        }
        if (read[byte].thread != NOBODY && conflicts(read[byte], thread, block_epoch, wave_epoch)) {
            return "writes LDS that another thread read, without a barrier between";
        }
        written[byte] = {static_cast<uint16_t>(thread), block_epoch, wave_epoch};
        return nullptr;
    }

  private:
    static constexpr uint16_t NOBODY = 0xffff, EVERYBODY = 0xfffe, MANY = 0x4000;
    struct Access {
        uint16_t thread = NOBODY;
        uint32_t block_epoch = 0, wave_epoch = 0;
    };
    bool conflicts(const Access& before, unsigned thread, uint32_t block_epoch, uint32_t wave_epoch) const {
        if (before.thread == thread || before.block_epoch != block_epoch) return false;
        if (before.thread == EVERYBODY) return true;
        const bool same_wave = (before.thread & ~MANY) / wave == thread / wave;
        return !same_wave || before.wave_epoch == wave_epoch;
    }

    unsigned wave = 64;
    std::vector<unsigned char> memory;
    std::vector<Access> written, read;
};

} // namespace emulation

#endif
