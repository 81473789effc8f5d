/* Runs generated kernels in an emulated process: `program FILE`. Built, with kernels and launcher, by emulated.py.

   FILE is memory, mapped at ARENA, where the addresses in it hold; what kernels write is in the file when this ends. It
   begins with the number of launches, then eleven words each: address of the block, p0..p3, threads, bytes of shared
   scratch, bytes of a thread's, flush, scratch, and FPCR to be found and left behind. A kernel's address in a block is
   its number in `kernels`.

   Exits with 3 if a launch leaves another FPCR than it found. */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define FIXED_NOREPLACE 0x100000

extern void *const kernels[];
extern void *runtime[5];
extern void own_parallel(void *, void *, int, int);
extern void run(int64_t *, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);

static uint64_t fpcr(void) {
    uint64_t word;
    __asm__ volatile("mrs %0, fpcr" : "=r"(word));
    return word;
}

static void set_fpcr(uint64_t word) { __asm__ volatile("msr fpcr, %0" : : "r"(word)); }

static void find_kernels(int64_t *block) {
    int64_t *job = block + 1;
    for (int64_t i = 0; i < block[0]; i++) {
        job[0] = (int64_t)kernels[job[0]];
        job += 4 + job[3];
    }
}

int main(int count, char **arguments) {
    struct stat status;
    int file = count == 2 ? open(arguments[1], O_RDWR) : -1;
    if (file < 0 || fstat(file, &status)) return perror("open"), 2;
    int64_t *arena = mmap((void *)ARENA, status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | FIXED_NOREPLACE, file, 0);
    if (arena != (int64_t *)ARENA) return perror("mmap"), 2;
    runtime[0] = (void *)own_parallel;
    runtime[2] = (void *)pthread_create;
    runtime[3] = (void *)pthread_join;
    runtime[4] = (void *)sched_yield;
    for (int64_t *l = arena + 1; l < arena + 1 + 11 * arena[0]; l += 11) {
        find_kernels((int64_t *)l[0]);
        set_fpcr(l[10]);
        run((int64_t *)l[0], l[1], l[2], l[3], l[4], l[5], l[6], l[7], l[8], l[9]);
        uint64_t left = fpcr();
        set_fpcr(0);
        if (left != (uint64_t)l[10]) return fprintf(stderr, "FPCR %lx, was %lx\n", left, l[10]), 3;
    }
    return 0;
}
