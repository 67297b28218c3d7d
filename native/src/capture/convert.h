/* SPDX-License-Identifier: GPL-3.0-or-later */
/* `convert`: from a migration stream that QEMU has written to the RAM image and the device state of
 * a snapshot. */
#ifndef LS_CAPTURE_CONVERT_H
#define LS_CAPTURE_CONVERT_H

/* One request on `in`, events on `out`. Returns the exit code; after a failure nothing is left. */
int ls_convert_run(int in, int out);

#endif
