/* Calls that later kernels have brought, on what may not be read or not be changed. */
#include "attack.h"
#include <linux/fs.h>
struct xattr_args { unsigned long value; unsigned size, flags; };
int main(void) {
    char value[128] = {0};
    struct xattr_args get = {(unsigned long)value, sizeof value, 0}, set = {(unsigned long)"1", 1, 0};
    struct { unsigned long flags; unsigned extsize, nextents, projid, cowextsize; } attr = {0x40 | 0x80};
    int frozen = open("frozen/f", O_RDONLY);
    if (syscall(464, AT_FDCWD, "secrets/key", 0, "user.safeclaw", &get, sizeof get) > 0) puts(value);
    if (syscall(465, AT_FDCWD, "secrets/key", 0, value, sizeof value) > 0) puts(value);
    syscall(463, AT_FDCWD, "frozen/f", 0, "user.mark", &set, sizeof set);
    syscall(463, frozen, "", AT_EMPTY_PATH, "user.mark", &set, sizeof set);
    syscall(469, AT_FDCWD, "frozen/f", &attr, sizeof attr, 0);
    syscall(452, AT_FDCWD, "frozen/f", 0666, 0); /* fchmodat2 */
    syscall(452, frozen, "", 0666, AT_EMPTY_PATH);
    fflush(stdout);
    return 0;
}
