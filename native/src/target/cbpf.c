/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "target/cbpf.h"

#include <stdbool.h>
#include <string.h>

struct machine {
    uint32_t a;
    uint32_t x;
    uint32_t mem[BPF_MEMWORDS];
};

static bool alu(struct machine *m, uint16_t code, uint32_t k)
{
    uint32_t operand = BPF_SRC(code) == BPF_X ? m->x : k;

    switch (BPF_OP(code)) {
    case BPF_ADD:
        m->a += operand;
        return true;
    case BPF_SUB:
        m->a -= operand;
        return true;
    case BPF_MUL:
        m->a *= operand;
        return true;
    case BPF_DIV:
        /* division by X = 0 ends a program with 0, SECCOMP_RET_KILL_THREAD: not worth guessing */
        if (operand == 0)
            return false;
        m->a /= operand;
        return true;
    case BPF_AND:
        m->a &= operand;
        return true;
    case BPF_OR:
        m->a |= operand;
        return true;
    case BPF_XOR:
        m->a ^= operand;
        return true;
    case BPF_LSH:
        m->a = operand < 32 ? m->a << operand : 0;
        return operand < 32;
    case BPF_RSH:
        m->a = operand < 32 ? m->a >> operand : 0;
        return operand < 32;
    case BPF_NEG:
        m->a = -m->a;
        return true;
    default:
        return false;
    }
}

/* How many instructions to skip; false for an unknown jump. */
static bool jump(const struct machine *m, const struct sock_filter *in, size_t *skip)
{
    uint32_t operand = BPF_SRC(in->code) == BPF_X ? m->x : in->k;
    bool taken;

    switch (BPF_OP(in->code)) {
    case BPF_JA:
        *skip = in->k;
        return true;
    case BPF_JEQ:
        taken = m->a == operand;
        break;
    case BPF_JGT:
        taken = m->a > operand;
        break;
    case BPF_JGE:
        taken = m->a >= operand;
        break;
    case BPF_JSET:
        taken = (m->a & operand) != 0;
        break;
    default:
        return false;
    }
    *skip = taken ? in->jt : in->jf;
    return true;
}

static bool load(uint32_t *into, const struct machine *m, const struct sock_filter *in,
                 const struct seccomp_data *data)
{
    switch (BPF_MODE(in->code)) {
    case BPF_IMM:
        *into = in->k;
        return true;
    case BPF_MEM:
        if (in->k >= BPF_MEMWORDS)
            return false;
        *into = m->mem[in->k];
        return true;
    case BPF_LEN:
        *into = sizeof *data;
        return true;
    case BPF_ABS:
        if (BPF_SIZE(in->code) != BPF_W || in->k % 4 != 0 || in->k > sizeof *data - 4)
            return false;
        memcpy(into, (const char *)data + in->k, 4);
        return true;
    default:
        return false;
    }
}

int ls_cbpf_run(const struct sock_filter *program, size_t length, const struct seccomp_data *data,
                uint32_t *verdict)
{
    struct machine m = {0};
    size_t skip;

    /* jumps only go forward, so the loop ends */
    for (size_t pc = 0; pc < length; pc++) {
        const struct sock_filter *in = &program[pc];

        switch (BPF_CLASS(in->code)) {
        case BPF_LD:
            if (!load(&m.a, &m, in, data))
                return -1;
            break;
        case BPF_LDX:
            if (BPF_MODE(in->code) == BPF_ABS || !load(&m.x, &m, in, data))
                return -1;
            break;
        case BPF_ST:
        case BPF_STX:
            if (in->k >= BPF_MEMWORDS)
                return -1;
            m.mem[in->k] = BPF_CLASS(in->code) == BPF_ST ? m.a : m.x;
            break;
        case BPF_ALU:
            if (!alu(&m, in->code, in->k))
                return -1;
            break;
        case BPF_JMP:
            if (!jump(&m, in, &skip) || skip >= length - pc)
                return -1;
            pc += skip;
            break;
        case BPF_MISC:
            if (BPF_MISCOP(in->code) == BPF_TAX)
                m.x = m.a;
            else
                m.a = m.x;
            break;
        case BPF_RET:
            *verdict = BPF_RVAL(in->code) == BPF_A ? m.a : in->k;
            return 0;
        default:
            return -1;
        }
    }
    return -1;
}
