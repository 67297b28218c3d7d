/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The witness: one growing counter, written to each disk and then to each page of a buffer, always
 * in that order.
 *
 * Step k writes a record with k to the disks (in the order of the command line, O_DIRECT and
 * O_SYNC), reads it back, then writes k to every page of the buffer from the first to the last. So
 * at any instant the sequence (disk 1, ..., disk n, page 1, ..., page m) is a prefix that holds k
 * and a rest that holds k - 1. A copy of RAM and disks for which that isn't so, isn't of one
 * instant. tests/guests/lab/oracle.py reads the same layout out of images.
 *
 * usage: witness [--mixed] [--calm MIB] [--rest MS] MIB FILE...
 *                                 count; a line of JSON on stdout, five a second
 *        witness --ask [reset]    ask the one that counts; reset begins a new longest pause
 *
 * --mixed fills every other 16 pages with what cannot be compressed. --calm fills so much memory
 * more and leaves it alone. Both are for measuring, as is the meter: a page that the host may read
 * out of the guest's memory at any time, at the address that is printed as meter_gpa. --rest lets
 * it rest so long after each mebibyte, and leave the host's processors to others; for a while after
 * it was asked, and at the beginning, an eighth of that: who asks waits to see it count.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    PAGE = 4096,
    MAX_DISKS = 8,
    CHECKED_WHOLE = 16,
    PAGES_A_CLOCK = 64,
    METER_SECONDS = 150,
    REPORTS_A_SECOND = 5,
    HASTE_SECONDS = 2,
    HASTE = 8,
    MIXED_RUN = 16
};

static const uint64_t RAM_MAGIC = 0x4c5357524d303153;  /* "S10MRWSL" in memory */
static const uint64_t DISK_MAGIC = 0x4c53574453304b31; /* "1K0SDWSL" in memory */

struct record {
    uint64_t magic;
    uint64_t
        boot; /* random, one for each start of the witness: tells pages of an earlier boot apart */
    uint64_t index;
    uint64_t counter;
    uint64_t fill[PAGE / 8 - 5];
    uint64_t tail; /* the counter again, written after it */
};

struct disk {
    const char *path;
    int fd;
};

/* What the host reads, by tests/bench/meter.py. Stores are relaxed: each word stands alone. */
struct meter {
    uint64_t magic; /* RAM_MAGIC + 1 */
    uint64_t boot;
    _Atomic uint64_t written; /* pages, since the witness is ready */
    _Atomic uint64_t last_ns; /* CLOCK_MONOTONIC of the guest at its last step */
    struct {
        _Atomic uint64_t second; /* of that clock */
        /* The longest that ended in this second. */
        _Atomic uint64_t step_ns; /* between two looks at the clock, PAGES_A_CLOCK pages apart */
        _Atomic uint64_t loop_ns; /* once through the disks and the buffer */
    } second[METER_SECONDS];      /* the last ones, at second % METER_SECONDS */
};
_Static_assert(sizeof(struct meter) <= PAGE, "the meter is one page");

static struct {
    uint64_t boot;
    size_t pages, disks, calm_pages;
    bool mixed;
    long rest_ns;
    struct record *buffer;
    struct meter *meter;
    uint64_t meter_gpa;
    struct disk disk[MAX_DISKS];
    /* Written by the counting thread, read by the reporting one; each stands alone, so relaxed
     * order is enough. */
    _Atomic uint64_t counter, longest_pause_ns, last_step_ns, asked_ns, errors;
    _Atomic bool ready;
    pthread_mutex_t lock; /* protects error */
    char error[256];
} state = {.lock = PTHREAD_MUTEX_INITIALIZER};

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* The first thing found wrong is kept: what follows is mostly its consequence. */
__attribute__((format(printf, 1, 2))) static void broken(const char *format, ...)
{
    pthread_mutex_lock(&state.lock);
    if (atomic_fetch_add_explicit(&state.errors, 1, memory_order_relaxed) == 0) {
        va_list args;
        va_start(args, format);
        vsnprintf(state.error, sizeof(state.error), format, args);
        va_end(args);
    }
    pthread_mutex_unlock(&state.lock);
}

static uint64_t scramble(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t fill_word(uint64_t index, size_t word)
{
    if (state.mixed) {
        /* Half of the pages are random; in the others two words of eight are, and the rest are
         * alike: LZ4 makes about two fifths of those, as of most memory. */
        bool random = index / MIXED_RUN % 2 || word % 8 < 2;

        return scramble(index * 0x9e3779b97f4a7c15u + (random ? word : word / 64));
    }
    /* The same for eight words: compresses somewhat, as real memory does, and is no page of zeros.
     */
    uint64_t x = (index * 0x9e3779b97f4a7c15u) ^ (word / 8 * 0xbf58476d1ce4e5b9u);
    return x ^ (x >> 29);
}

static void longer(_Atomic uint64_t *longest, uint64_t ns)
{
    if (ns > atomic_load_explicit(longest, memory_order_relaxed))
        atomic_store_explicit(longest, ns, memory_order_relaxed);
}

static void meter(uint64_t now, uint64_t step_ns, uint64_t loop_ns)
{
    uint64_t second = now / 1000000000u;
    size_t at = second % METER_SECONDS;

    if (atomic_load_explicit(&state.meter->second[at].second, memory_order_relaxed) != second) {
        atomic_store_explicit(&state.meter->second[at].step_ns, 0, memory_order_relaxed);
        atomic_store_explicit(&state.meter->second[at].loop_ns, 0, memory_order_relaxed);
        atomic_store_explicit(&state.meter->second[at].second, second, memory_order_relaxed);
    }
    longer(&state.meter->second[at].step_ns, step_ns);
    longer(&state.meter->second[at].loop_ns, loop_ns);
    atomic_store_explicit(&state.meter->last_ns, now, memory_order_relaxed);
}

/* Time passed since the last call, if it's the longest so far. */
static void tick(void)
{
    uint64_t now = now_ns();
    uint64_t last = atomic_load_explicit(&state.last_step_ns, memory_order_relaxed);
    uint64_t longest = atomic_load_explicit(&state.longest_pause_ns, memory_order_relaxed);
    while (now - last > longest &&
           !atomic_compare_exchange_weak_explicit(&state.longest_pause_ns, &longest, now - last,
                                                  memory_order_relaxed, memory_order_relaxed))
        ;
    atomic_store_explicit(&state.last_step_ns, now, memory_order_relaxed);
    meter(now, now - last, 0);
}

static void fill_page(struct record *page, uint64_t magic, uint64_t index, uint64_t counter)
{
    page->magic = magic;
    page->boot = state.boot;
    page->index = index;
    page->counter = counter;
    uint64_t fill = 0;
    for (size_t word = 0; word < sizeof(page->fill) / 8; word++) {
        /* Where they are the same for eight words, they are made once for eight words. */
        if (state.mixed || word % 8 == 0)
            fill = fill_word(index, word);
        page->fill[word] = fill;
    }
    page->tail = counter;
}

/* Counters are checked on every page; all bytes on a few, another few each time. */
static void check_whole(const struct record *page, uint64_t index)
{
    for (size_t word = 0; word < sizeof(page->fill) / 8; word++) {
        if (page->fill[word] != fill_word(index, word)) {
            broken("page %" PRIu64 ", word %zu: %" PRIx64 " instead of %" PRIx64, index, word,
                   page->fill[word], fill_word(index, word));
            return;
        }
    }
}

static void rest(void)
{
    uint64_t asked = atomic_load_explicit(&state.asked_ns, memory_order_relaxed);
    bool haste = now_ns() - asked < HASTE_SECONDS * 1000000000u;
    struct timespec time = {.tv_nsec = haste ? state.rest_ns / HASTE : state.rest_ns};

    nanosleep(&time, NULL);
}

static void write_ram(uint64_t counter)
{
    for (size_t i = 0; i < state.pages; i++) {
        volatile struct record *page = &state.buffer[i];
        if (page->magic != RAM_MAGIC || page->boot != state.boot || page->index != i)
            broken("page %zu isn't ours any more: magic %" PRIx64 ", index %" PRIu64, i,
                   page->magic, page->index);
        if (page->counter != counter - 1 || page->tail != counter - 1)
            broken("page %zu holds %" PRIu64 " and %" PRIu64 " instead of %" PRIu64, i,
                   page->counter, page->tail, counter - 1);
        page->counter = counter;
        page->tail = counter;
        if (i % PAGES_A_CLOCK == 0) {
            atomic_fetch_add_explicit(&state.meter->written, PAGES_A_CLOCK, memory_order_relaxed);
            tick();
        }
        if (state.rest_ns > 0 && i % (1048576 / PAGE) == 0)
            rest();
    }
    for (size_t n = 0; n < CHECKED_WHOLE && n < state.pages; n++) {
        size_t i = (counter * CHECKED_WHOLE + n) % state.pages;
        check_whole(&state.buffer[i], i);
    }
}

static void write_disk(const struct disk *disk, struct record *record, uint64_t counter)
{
    record->counter = counter;
    record->tail = counter;
    if (pwrite(disk->fd, record, PAGE, 0) != PAGE) {
        broken("%s: writing %" PRIu64 ": %s", disk->path, counter, strerror(errno));
        return;
    }
    tick();
    record->counter = 0;
    record->tail = 0;
    if (pread(disk->fd, record, PAGE, 0) != PAGE)
        broken("%s: reading back: %s", disk->path, strerror(errno));
    else if (record->magic != DISK_MAGIC || record->boot != state.boot ||
             record->counter != counter || record->tail != counter)
        broken("%s: reads %" PRIu64 " after %" PRIu64 " was written", disk->path, record->counter,
               counter);
}

/* The counter on a disk, 0 on a fresh one. Its file has one page, written in place from then on. */
static uint64_t open_disk(struct disk *disk, struct record *record, uint64_t index)
{
    disk->fd = open(disk->path, O_RDWR | O_CREAT | O_DIRECT | O_SYNC | O_CLOEXEC, 0600);
    if (disk->fd < 0) {
        broken("%s: %s", disk->path, strerror(errno));
        return 0;
    }
    ssize_t length = pread(disk->fd, record, PAGE, 0);
    if (length == 0)
        return 0;
    if (length != PAGE || record->magic != DISK_MAGIC || record->index != index ||
        record->counter != record->tail) {
        broken("%s: isn't a record of ours", disk->path);
        return 0;
    }
    return record->counter;
}

static void *count(void *unused)
{
    (void)unused;
    struct record *record[MAX_DISKS];
    uint64_t counter = 0;
    atomic_store_explicit(&state.last_step_ns, now_ns(), memory_order_relaxed);
    for (size_t i = 0; i < state.disks; i++) {
        record[i] = aligned_alloc(PAGE, PAGE);
        uint64_t found = open_disk(&state.disk[i], record[i], i);
        if (found > counter)
            counter = found;
    }
    for (size_t i = 0; i < state.pages; i++)
        fill_page(&state.buffer[i], RAM_MAGIC, i, counter);
    for (size_t i = 0; i < state.disks; i++) {
        fill_page(record[i], DISK_MAGIC, i, counter);
        if (state.disk[i].fd >= 0)
            write_disk(&state.disk[i], record[i], counter);
    }
    atomic_store_explicit(&state.longest_pause_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&state.last_step_ns, now_ns(), memory_order_relaxed);
    atomic_store_explicit(&state.asked_ns, now_ns(), memory_order_relaxed);
    atomic_store_explicit(&state.ready, true, memory_order_relaxed);
    /* After an error it stands still: what was found is to be looked at, and can't be mistaken for
     * progress. */
    while (atomic_load_explicit(&state.errors, memory_order_relaxed) == 0) {
        uint64_t begun = now_ns();

        counter++;
        for (size_t i = 0; i < state.disks; i++)
            write_disk(&state.disk[i], record[i], counter);
        write_ram(counter);
        uint64_t now = now_ns();
        meter(now, 0, now - begun);
        atomic_store_explicit(&state.counter, counter, memory_order_relaxed);
    }
    return NULL;
}

static int report(char *out, size_t size, double rate)
{
    uint64_t now = now_ns();
    uint64_t last = atomic_load_explicit(&state.last_step_ns, memory_order_relaxed);
    uint64_t longest = atomic_load_explicit(&state.longest_pause_ns, memory_order_relaxed);
    uint64_t errors = atomic_load_explicit(&state.errors, memory_order_relaxed);
    bool ready = atomic_load_explicit(&state.ready, memory_order_relaxed);
    uint64_t still = ready && now > last ? now - last : 0;
    char error[sizeof(state.error)];
    pthread_mutex_lock(&state.lock);
    memcpy(error, state.error, sizeof(error));
    pthread_mutex_unlock(&state.lock);
    return snprintf(out, size,
                    "{\"boot\":\"%016" PRIx64 "\",\"counter\":%" PRIu64
                    ",\"rate\":%.1f,\"longest_pause_ms\":%.1f,"
                    "\"still_ms\":%.1f,\"intact\":%s,\"ready\":%s,\"pages\":%zu,\"disks\":%zu,"
                    "\"uptime_s\":%.1f,\"meter_gpa\":%" PRIu64 ","
                    "\"error\":\"%s\"}\n",
                    state.boot, atomic_load_explicit(&state.counter, memory_order_relaxed), rate,
                    (double)(still > longest ? still : longest) / 1e6, (double)still / 1e6,
                    errors ? "false" : "true", ready ? "true" : "false", state.pages, state.disks,
                    (double)now / 1e9, state.meter_gpa, error);
}

static socklen_t address(struct sockaddr_un *name)
{
    static const char abstract[] = "\0witness";
    memset(name, 0, sizeof(*name));
    name->sun_family = AF_UNIX;
    memcpy(name->sun_path, abstract, sizeof(abstract) - 1);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + sizeof(abstract) - 1);
}

static void answer(int listener, double rate)
{
    char request[16] = "", text[1024];
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t length = read(fd, request, sizeof(request) - 1);
    int size = report(text, sizeof(text), rate);
    atomic_store_explicit(&state.asked_ns, now_ns(), memory_order_relaxed);
    if (length > 0 && strcmp(request, "reset") == 0)
        atomic_store_explicit(&state.longest_pause_ns, 0, memory_order_relaxed);
    if (write(fd, text, (size_t)size) != size)
        perror("witness: answer");
    close(fd);
}

static void print_and_answer(int listener)
{
    static const uint64_t second = 1000000000u, between = second / REPORTS_A_SECOND;
    uint64_t printed = now_ns(), rated = printed, before = 0;
    double rate = 0;
    for (;;) {
        uint64_t now = now_ns();
        if (now - rated >= second) {
            uint64_t counter = atomic_load_explicit(&state.counter, memory_order_relaxed);
            rate = before ? (double)(counter - before) * 1e9 / (double)(now - rated) : 0;
            before = counter;
            rated = now;
        }
        if (now - printed >= between) {
            /* One write a line: the kernel's own messages come between lines, not inside. */
            char line[1100] = "witness ";
            int size = report(line + 8, sizeof(line) - 8, rate);
            if (write(STDOUT_FILENO, line, (size_t)size + 8) < 0)
                _exit(1);
            printed = now;
            now = now_ns();
        }
        struct pollfd wait = {.fd = listener, .events = POLLIN};
        uint64_t left = now - printed < between ? between - (now - printed) : 0;
        if (poll(&wait, 1, (int)(left / 1000000) + 1) > 0)
            answer(listener, rate);
    }
}

static int ask(const char *request)
{
    struct sockaddr_un name;
    socklen_t length = address(&name);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&name, length) < 0 ||
        write(fd, request, strlen(request)) < 0) {
        perror("witness: ask");
        return 1;
    }
    char text[1024];
    ssize_t size = read(fd, text, sizeof(text));
    return size > 0 && write(STDOUT_FILENO, text, (size_t)size) == size ? 0 : 1;
}

/* Locked, so that the kernel doesn't move pages and leave stale copies of them behind. */
static void *locked(size_t pages)
{
    return mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE, -1, 0);
}

/* The guest-physical address of a page of ours, 0 if the kernel doesn't tell. */
static uint64_t physical(const void *page)
{
    uint64_t entry = 0;
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return 0;
    if (pread(fd, &entry, sizeof(entry), (off_t)((uintptr_t)page / PAGE * 8)) != sizeof(entry))
        entry = 0;
    close(fd);
    return (entry & ((1ull << 55) - 1)) * PAGE;
}

static bool make_meter(void)
{
    state.meter = locked(1);
    if (state.meter == MAP_FAILED)
        return false;
    state.meter->magic = RAM_MAGIC + 1;
    state.meter->boot = state.boot;
    state.meter_gpa = physical(state.meter);
    return true;
}

/* Memory that is full and stays as it is. */
static bool make_calm(void)
{
    struct record *calm;

    if (state.calm_pages == 0)
        return true;
    calm = locked(state.calm_pages);
    if (calm == MAP_FAILED)
        return false;
    for (size_t i = 0; i < state.calm_pages; i++)
        for (size_t word = 0; word < PAGE / 8; word++)
            ((uint64_t *)&calm[i])[word] = fill_word(i, word);
    return true;
}

int main(int argc, char **argv)
{
    if (argc >= 2 && strcmp(argv[1], "--ask") == 0)
        return ask(argc > 2 ? argv[2] : "state");
    for (; argc > 1 && strncmp(argv[1], "--", 2) == 0; argc--, argv++) {
        if (strcmp(argv[1], "--mixed") == 0) {
            state.mixed = true;
        } else if (strcmp(argv[1], "--calm") == 0 && argc > 2) {
            state.calm_pages = strtoul(argv[2], NULL, 10) * (1048576 / PAGE);
            argc--, argv++;
        } else if (strcmp(argv[1], "--rest") == 0 && argc > 2) {
            state.rest_ns = strtol(argv[2], NULL, 10) % 1000 * 1000000;
            argc--, argv++;
        } else {
            argc = 0;
            break;
        }
    }
    if (argc < 2 || argc - 2 > MAX_DISKS) {
        fprintf(stderr, "usage: witness [--mixed] [--calm MIB] [--rest MS] MIB FILE... | "
                        "witness --ask [reset]\n");
        return 2;
    }
    /* It takes all the time that there is: the guest's agent and console come first. */
    if (setpriority(PRIO_PROCESS, 0, 10))
        perror("witness: priority");
    state.pages = strtoul(argv[1], NULL, 10) * (1048576 / PAGE);
    state.disks = (size_t)argc - 2;
    for (size_t i = 0; i < state.disks; i++)
        state.disk[i] = (struct disk){.path = argv[i + 2], .fd = -1};
    if (getrandom(&state.boot, sizeof(state.boot), GRND_INSECURE) != sizeof(state.boot))
        return 1;
    state.buffer = locked(state.pages);
    if (state.pages == 0 || state.buffer == MAP_FAILED || !make_meter() || !make_calm()) {
        perror("witness: buffer");
        return 1;
    }
    struct sockaddr_un name;
    socklen_t length = address(&name);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&name, length) < 0 ||
        listen(listener, 8) < 0) {
        perror("witness: socket");
        return 1;
    }
    pthread_t counting;
    if (pthread_create(&counting, NULL, count, NULL) != 0)
        return 1;
    print_and_answer(listener);
}
