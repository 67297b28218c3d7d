#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs native tests as the init of another kernel, under TCG: by default the one of the test guest (tests/images/build), on Debian 12
# Linux 6.1, which has no PAGEMAP_SCAN. Nothing is installed.
# usage: run-under-kernel.sh TEST...     environment: KERNEL=image MEMORY=MiB LIMIT=seconds ROUNDS=n
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
repo=$here/../..
kernel=${KERNEL:-$repo/build/images/kernel.img}
memory=${MEMORY:-512}
limit=${LIMIT:-900}

[ $# -gt 0 ] || { sed -n 's/^# usage: /usage: /p' "$0" >&2; exit 2; }
if [ -z "${KERNEL:-}" ]; then
    "$repo/tests/images/build" "$repo/build/images"
fi
busybox=$(command -v busybox) || { echo "SKIP run-under-kernel: no busybox"; exit 0; }
command -v qemu-system-x86_64 >/dev/null || { echo "SKIP run-under-kernel: no qemu-system-x86_64"; exit 0; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{bin,dev,proc,sys,run,tmp,tests}
cp "$busybox" "$root/bin/busybox"

# The test programs and the libraries that they are linked with, at their own places.
for test in "$@"; do
    cp "$test" "$root/tests/"
    while read -r library; do
        mkdir -p "$root$(dirname "$library")"
        cp -Ln "$library" "$root$library" || true
    done < <(ldd "$test" | grep -o '/[^ ]*')
done

cat >"$root/init" <<INIT
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin ROUNDS=${ROUNDS:-0}
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
echo 1 > /proc/sys/vm/unprivileged_userfaultfd
echo "== \$(uname -r)"
failed=0
for test in /tests/*; do
    echo "== \$test at \$(cut -d' ' -f1 /proc/uptime) s"
    \$test || failed=1
done
echo "run-under-kernel: ended \$failed"
sync
poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | cpio --quiet -o -H newc -R 0:0) | gzip -1 >"$work/initrd"

# What a thread's registers need, and no more: TCG is twice as slow with all that it can do.
cpu=qemu64,+xsave,+xsaveopt,+avx
timeout "$limit" qemu-system-x86_64 -nodefaults -no-user-config -machine pc,accel=tcg -cpu "$cpu" -smp 2 \
    -m "$memory" -display none -no-reboot -kernel "$kernel" -initrd "$work/initrd" -append "console=ttyS0 quiet panic=-1 mitigations=off cryptomgr.notests" -serial stdio </dev/null 2>&1 |
    stdbuf -oL tr -d '\r' | tee "$work/log"
grep -q '^run-under-kernel: ended 0$' "$work/log"
