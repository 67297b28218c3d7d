/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The subcommands. Each gets its own argv (argv[0] is its name) and returns an exit code of
 * enum ls_class.
 */
#ifndef LS_COMMANDS_H
#define LS_COMMANDS_H

#include "common/error.h"

int ls_cmd_capture(int argc, char **argv);
int ls_cmd_convert(int argc, char **argv);
int ls_cmd_engines(int argc, char **argv);
int ls_cmd_features(int argc, char **argv);
int ls_cmd_guard(int argc, char **argv);
int ls_cmd_ksm(int argc, char **argv);
int ls_cmd_export(int argc, char **argv);
int ls_cmd_info(int argc, char **argv);
int ls_cmd_read(int argc, char **argv);
int ls_cmd_serve(int argc, char **argv);
int ls_cmd_verify(int argc, char **argv);
#ifdef LS_FAULTS
int ls_cmd_faults(int argc, char **argv);
#endif

#endif
