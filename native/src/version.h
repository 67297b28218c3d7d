/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef LS_VERSION_H
#define LS_VERSION_H

#define LS_VERSION "0.1.0"
/* Grows when requests or events change so that an older module could not drive this helper. */
#define LS_PROTOCOL 1

#endif
