/* Lets a process take this processor for another one, with LD_PRELOAD and PLAYED_PROCESSOR=zen2 and the like.
 *
 * The kernel makes CPUID fault (arch_prctl(ARCH_CPUID_SET, 0), x86-64 Linux on processors that can), and a
 * handler answers in its place: another vendor, model, caches, and no more instructions than that one has.
 * All libraries that choose by CPUID once this is loaded choose as they would there; not the C library itself,
 * which has asked by then. What the instructions compute stays this processor's. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_CPUID_SET 0x1012
#define NO(r, bit) ((r) &= ~(1u << (bit)))

enum { NONE, ZEN2, ZEN4, NEHALEM, HASWELL, SKYLAKE_X };
static const char *names[] = {"", "zen2", "zen4", "nehalem", "haswell", "skylake-x"};
static const uint32_t signatures[] = {0, 0x00830F10, 0x00A10F11, 0x106A5, 0x306C3, 0x50654}; /* leaf 1, EAX */
static int played;

static void answers(long whether) { syscall(SYS_arch_prctl, ARCH_CPUID_SET, whether); }

static void no_avx512(uint32_t leaf, uint32_t sub, uint32_t r[4]) {
    if (leaf != 7) return;
    if (sub) { memset(r, 0, 16); return; }
    r[0] = 0;
    for (int bit = 16; bit < 32; bit++)
        if (bit != 18 && bit != 19 && bit != 20 && bit != 23 && bit != 24 && bit != 29) NO(r[1], bit);
    r[2] = r[3] = 0;
}

static void amd(uint32_t leaf, uint32_t sub, uint32_t r[4]) {
    static const uint32_t caches[4][3] = {/* type, line and ways, sets - 1 */
        {0x121, 63 | 7u << 22, 63}, {0x122, 63 | 7u << 22, 63},
        {0x143, 63 | 7u << 22, 1023}, {0x1C163, 63 | 15u << 22, 16383}};
    if (leaf == 0 || leaf == 0x80000000) {
        r[0] = leaf ? 0x80000020 : r[0] > 0x10 ? 0x10 : r[0];
        memcpy(&r[1], "Auth", 4), memcpy(&r[3], "enti", 4), memcpy(&r[2], "cAMD", 4);
    }
    if (leaf == 2 || leaf == 4) memset(r, 0, 16); /* AMD has none */
    if (leaf == 0x80000001) r[2] |= 1u << 22;
    if (leaf == 0x80000005) r[2] = r[3] = 0x20080140;
    if (leaf == 0x80000006) r[2] = 0x02006140, r[3] = 0x00808140;
    if (leaf == 0x8000001D) {
        memset(r, 0, 16);
        if (sub < 4) memcpy(r, caches[sub], 12);
    }
}

static void no_amx(uint32_t leaf, uint32_t sub, uint32_t r[4]) {
    if (leaf == 7 && sub == 0) NO(r[3], 22), NO(r[3], 23), NO(r[3], 24), NO(r[3], 25);
    if (leaf == 7 && sub == 1) r[0] &= played == ZEN4 ? 1u << 5 : 0, r[1] = r[2] = r[3] = 0;
}

static void answer(uint32_t leaf, uint32_t sub, uint32_t r[4]) {
    answers(1);
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
    answers(0);
    if (leaf == 1) r[0] = signatures[played];
    if (played == ZEN2 || played == ZEN4) amd(leaf, sub, r);
    if (played == ZEN2 || played == HASWELL) no_avx512(leaf, sub, r);
    if (played == ZEN4 || played == SKYLAKE_X) no_amx(leaf, sub, r);
    if (played == NEHALEM) {
        static const int gone[] = {1, 12, 22, 25, 26, 27, 28, 29, 30}; /* FMA, AES, XSAVE, AVX, F16C … */
        if (leaf == 0) r[0] = 0xB;
        if (leaf == 1) for (unsigned i = 0; i < sizeof gone / sizeof *gone; i++) NO(r[2], gone[i]);
        if (leaf == 7 || leaf == 0xD) memset(r, 0, 16);
        if (leaf == 0x80000001) NO(r[2], 5), NO(r[2], 11), NO(r[2], 16);
    }
    if (played == SKYLAKE_X && leaf == 4) { /* 32 KiB, 512 KiB, 4 MiB */
        uint32_t level = r[0] >> 5 & 7;
        if (level == 1) r[1] = 63 | 7u << 22, r[2] = 63;
        if (level == 2) r[1] = 63 | 3u << 22, r[2] = 2047;
        if (level == 3) r[1] = 63 | 15u << 22, r[2] = 4095;
    }
}

static void handle(int number, siginfo_t *info, void *context) {
    greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *at = (const uint8_t *)g[REG_RIP];
    if (info->si_code != SI_KERNEL || at[0] != 0x0F || at[1] != 0xA2) { /* a fault of somebody else's */
        signal(number, SIG_DFL);
        return;
    }
    uint32_t r[4];
    answer((uint32_t)g[REG_RAX], (uint32_t)g[REG_RCX], r);
    g[REG_RAX] = r[0], g[REG_RBX] = r[1], g[REG_RCX] = r[2], g[REG_RDX] = r[3];
    g[REG_RIP] += 2;
}

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("PLAYED_PROCESSOR");
    for (int i = 1; name && i <= SKYLAKE_X; i++)
        if (!strcmp(name, names[i])) played = i;
    if (!played) return;
    struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    if (syscall(SYS_arch_prctl, ARCH_CPUID_SET, 0L)) perror("PLAYED_PROCESSOR");
}
