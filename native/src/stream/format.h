/* SPDX-License-Identifier: GPL-3.0-or-later */
/* QEMU's migration stream, big-endian: the parts of it that are used here (the same from 6.0 on).
 */
#ifndef LS_STREAM_FORMAT_H
#define LS_STREAM_FORMAT_H

#define LS_QEMU_MAGIC 0x5145564du
#define LS_QEMU_VERSION 3u

#define LS_QEMU_EOF 0x00
#define LS_QEMU_SECTION_START 0x01
#define LS_QEMU_SECTION_PART 0x02
#define LS_QEMU_SECTION_END 0x03
#define LS_QEMU_SECTION_FULL 0x04
#define LS_QEMU_VMDESCRIPTION 0x06
#define LS_QEMU_CONFIGURATION 0x07
#define LS_QEMU_FOOTER 0x7e

/* Section `ram`, version 4. Its id must not be one of the device sections (0 is `timer`). */
#define LS_QEMU_RAM_SECTION 0x6c736e70u
#define LS_QEMU_RAM_VERSION 4u

/* In the low bits of page addresses. */
#define LS_RAM_ZERO 0x02u
#define LS_RAM_SIZES 0x04u
#define LS_RAM_PAGE 0x08u
#define LS_RAM_END 0x10u
#define LS_RAM_SAME_BLOCK 0x20u

#endif
