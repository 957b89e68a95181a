#include "fiber.h"

namespace emulation {

#if defined(__x86_64__)

// Saves the registers that a call must preserve (System V ABI), switches stacks, and restores the registers saved
// there. ucontext would do, but makes a system call for the signal mask at each switch.
extern "C" void spark_switch_stacks(void** from, void* to);
asm(R"(
.text
.globl spark_switch_stacks
.hidden spark_switch_stacks
.type spark_switch_stacks, @function
spark_switch_stacks:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size spark_switch_stacks, .-spark_switch_stacks
)");

void switch_to(Context& from, Context& to) { spark_switch_stacks(&from.stack_pointer, to.stack_pointer); }

void prepare(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
    auto top = reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t{15};
    auto words = reinterpret_cast<void**>(top);
    // An unused return address keeps the stack aligned as at a call; then `entry`, then six registers.
    words[-1] = nullptr;
    words[-2] = reinterpret_cast<void*>(entry);
    for (int i = 3; i <= 8; ++i) words[-i] = nullptr;
    context.stack_pointer = words - 8;
}

#else

void switch_to(Context& from, Context& to) { swapcontext(&from.context, &to.context); }

void prepare(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
    getcontext(&context.context);
    context.context.uc_stack.ss_sp = stack;
    context.context.uc_stack.ss_size = bytes;
    context.context.uc_link = nullptr;
    makecontext(&context.context, entry, 0);
}

#endif

} // namespace emulation
