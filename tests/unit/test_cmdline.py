# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rewriting of command lines: each kind of option, and what must never get through."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._clone import cmdline
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.argv import Props
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.blocks import DriveNames
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.plan import (
    DiskImage,
    Findings,
    MappedRam,
    Plan,
)
from hypothesis import given, settings
from hypothesis import strategies as st

PLAN = Plan(folder="/run/c", disk_folder="/store/c", name="web1.c", machine="pc-i440fx-7.2")


def rewrite(*words: str, plan: Plan = PLAN, **changes: Any) -> tuple[list[str], Findings]:
    """The words between the program and what every clone gets, for a -nodefaults machine."""
    command = cmdline.parse(["qemu", "-nodefaults", "-M", "pc", *words], "/vm")
    done = cmdline.rewrite(command, dataclasses.replace(plan, **changes))
    head = ["qemu", "-nodefaults", "-machine", "pc-i440fx-7.2"]
    assert done.argv[:4] == head
    tail = ["-display", "none", "-qmp", "unix:qmp.sock,server=on,wait=off", "-S"]
    if "-nographic" in words:
        tail = tail[2:]
    assert done.argv[-len(tail) :] == tail
    return done.argv[4 : -len(tail)], done.findings


def kept(*words: str, **changes: Any) -> None:
    argv, findings = rewrite(*words, **changes)
    assert (argv, findings.blockers) == (list(words), [])


def becomes(words: str, expected: str, **changes: Any) -> Findings:
    argv, findings = rewrite(*words.split(), **changes)
    assert argv == expected.split()
    assert findings.blockers == []
    return findings


def blocked(*words: str, **changes: Any) -> str:
    findings = rewrite(*words, **changes)[1]
    assert len(findings.blockers) == 1, findings.blockers
    return findings.blockers[0]


def disk(**given: Any) -> DiskImage:
    fields = {"device": "", "node": "", "qdev": "", "source": "", "overlay": "/store/c/disk0.qcow2"}
    return DiskImage(**{**fields, **given})


OVERLAY = "file=/store/c/disk0.qcow2,format=qcow2"


# Disks


@pytest.mark.parametrize(
    ("option", "expected", "match"),
    [
        (
            "-drive file=a.raw,format=raw,if=virtio,cache=none,aio=native,discard=unmap",
            f"-drive if=virtio,discard=unmap,{OVERLAY}",
            {"device": "virtio0"},
        ),
        (
            "-drive file=a.raw,if=none,id=sys,snapshot=on,node-name=n,l2-cache-size=1M",
            f"-drive if=none,id=sys,node-name=n,{OVERLAY}",
            {"device": "sys"},
        ),
        ("-drive file=a.raw,if=virtio", f"-drive if=virtio,{OVERLAY}", {"source": "/vm/a.raw"}),
        ("-hda a.raw", f"-drive index=0,media=disk,{OVERLAY}", {"device": "ide0-hd0"}),
        ("a.raw", f"-drive index=0,media=disk,{OVERLAY}", {"device": "ide0-hd0"}),
        ("-hdd a.raw", f"-drive index=3,media=disk,{OVERLAY}", {"device": "ide1-hd1"}),
        ("-fda a.img", f"-drive if=floppy,index=0,{OVERLAY}", {"device": "floppy0"}),
        ("-pflash vars.fd", f"-drive if=pflash,{OVERLAY}", {"device": "pflash0"}),
        (
            "-drive if=pflash,unit=1,file=vars.fd,format=raw",
            f"-drive if=pflash,unit=1,{OVERLAY}",
            {"device": "pflash1"},
        ),
        (
            "-drive file.driver=file,file.filename=a.raw,driver=raw,if=none,id=x,iops=100,bps_rd=5",
            f"-drive if=none,id=x,iops=100,bps_rd=5,{OVERLAY}",
            {"device": "x"},
        ),
        (
            "-drive file=nbd://host/x,if=none,id=x,werror=stop",
            f"-drive if=none,id=x,werror=stop,{OVERLAY}",
            {"device": "x"},
        ),
    ],
)
def test_drive(option: str, expected: str, match: dict[str, str]) -> None:
    findings = becomes(option, expected, disks=(disk(**match),))
    assert findings.warnings == []


def test_names_that_qemu_gives() -> None:
    names = DriveNames()
    given = [
        "if=virtio",
        "if=virtio",
        "media=cdrom",
        "index=2,media=cdrom",
        "media=disk",
        "if=none",
    ]
    given += ["if=none,id=x", "if=none", "if=scsi", "if=scsi,bus=1,unit=3"]
    assert [names.name(Props("drive", text)) for text in given] == [
        *("virtio0", "virtio1", "ide0-cd0", "ide1-cd0", "ide0-hd1", "none0"),
        *("x", "none2", "scsi0-hd0", "scsi1-hd3"),
    ]


def test_read_only_drives_stay() -> None:
    findings = becomes(
        "-cdrom iso/a.iso -drive file=/fw/code.fd,if=pflash,readonly=on,format=raw",
        "-drive index=2,media=cdrom,file=/vm/iso/a.iso"
        " -drive file=/fw/code.fd,if=pflash,readonly=on,format=raw",
    )
    assert findings.files == ["/vm/iso/a.iso", "/fw/code.fd"]
    kept("-drive", "if=ide,media=cdrom")


def test_a_writable_disk_without_a_snapshot_is_empty() -> None:
    findings = rewrite(
        *("-drive", "file=swap.raw,if=virtio"),
        *("-blockdev", "driver=file,node-name=s,filename=/x"),
        *("-device", "virtio-blk-pci,drive=s"),
    )[1]
    assert findings.blank_disks == ["/vm/swap.raw", "/x"]
    assert "'/vm/swap.raw'" in findings.warnings[0] and "'s'" in findings.warnings[1]


def graph(*words: str, **changes: Any) -> list[dict[str, Any]]:
    argv, findings = rewrite(*words, **changes)
    assert findings.blockers == []
    return [json.loads(argv[at + 1]) for at, word in enumerate(argv) if word == "-blockdev"]


def overlay_node(name: str, **more: str) -> dict[str, Any]:
    file = {"driver": "file", "filename": "/store/c/disk0.qcow2"}
    return {"driver": "qcow2", "node-name": name, **more, "file": file}


DEVICE = ("-device", "virtio-blk-pci,drive=d1")


def test_blockdev() -> None:
    nodes = graph(
        *("-blockdev", "driver=file,node-name=f1,filename=b.qcow2,cache.direct=on"),
        *("-blockdev", "driver=qcow2,node-name=d1,file=f1,discard=unmap"),
        *DEVICE,
        disks=(disk(node="d1"),),
    )
    assert nodes == [overlay_node("d1", discard="unmap")]


def test_blockdev_of_libvirt() -> None:
    storage = '{"driver":"file","filename":"/i/a","node-name":"libvirt-1-storage","cache":{}}'
    form = (
        '{"node-name":"libvirt-1-format","read-only":false,"driver":"qcow2",'
        '"file":"libvirt-1-storage","backing":null}'
    )
    nodes = graph(
        *("-blockdev", storage, "-blockdev", form),
        *("-device", '{"driver":"virtio-blk-pci","drive":"libvirt-1-format","id":"v0"}'),
        disks=(disk(node="libvirt-1-format"),),
    )
    assert nodes == [{**overlay_node("libvirt-1-format"), "read-only": False}]


def test_blockdev_matched_by_its_file() -> None:
    nodes = graph(
        *("-blockdev", "driver=raw,node-name=d1,file.driver=file,file.filename=b.raw"),
        *DEVICE,
        disks=(disk(node="filter", source="/vm/b.raw"),),
    )
    assert nodes == [overlay_node("d1")]


def test_read_only_blockdev_stays_with_all_below() -> None:
    nodes = graph(
        *("-blockdev", "driver=file,node-name=f1,filename=cd.iso,read-only=on"),
        *("-blockdev", "driver=raw,node-name=d1,file=f1,read-only=on"),
        *("-blockdev", "driver=file,node-name=unused,filename=/x"),
        *DEVICE,
    )
    assert [node["node-name"] for node in nodes] == ["f1", "d1"]
    assert nodes[0]["filename"] == "/vm/cd.iso"


def test_flash_of_the_machine_is_used() -> None:
    command = cmdline.parse(
        ["qemu", "-machine", "q35,pflash0=fw", "-blockdev", "driver=file,node-name=fw,filename=/v"],
        "/",
    )
    done = cmdline.rewrite(command, dataclasses.replace(PLAN, disks=(disk(node="fw"),)))
    assert json.loads(done.argv[4]) == overlay_node("fw")
    assert done.argv[2] == "pc-i440fx-7.2,pflash0=fw"


def test_blockdev_of_an_image_that_was_covered_since() -> None:
    nodes = graph(
        *("-blockdev", "driver=raw,node-name=d1,file.driver=file,file.filename=b.raw"),
        *DEVICE,
        disks=(disk(node="new", source="/vm/c", below=("/vm/b2", "/vm/b.raw")),),
    )
    assert nodes == [overlay_node("d1")]


def test_a_disk_that_is_not_on_the_command_line_blocks() -> None:
    assert "'hot'" in blocked("-m", "1G", disks=(disk(device="hot"),))


# Chardevs, consoles, monitors, displays


def sock(name: str) -> str:
    return f"path={name}.sock,server=on,wait=off"


@pytest.mark.parametrize(
    "behind",
    [
        *("socket,id=c,path=/x,server=on,wait=off", "socket,id=c,host=h,port=1"),
        *("socket,id=c,path=/x,logfile=/l,reconnect=1", "socket,id=c,fd=5", "udp,id=c,port=1"),
        *("file,id=c,path=/x", "pipe,id=c,path=/x", "serial,id=c,path=/dev/ttyS0"),
        *("pty,id=c", "stdio,id=c", "tty,id=c,path=/t"),
    ],
)
def test_chardevs_become_sockets(behind: str) -> None:
    argv, findings = rewrite("-chardev", behind, "-serial", "chardev:c")
    assert argv == ["-chardev", f"socket,id=c,{sock('c')}", "-serial", "chardev:c"]
    assert findings.consoles == ["c.sock"] and findings.blockers == []


def test_other_chardevs() -> None:
    user = "-device isa-serial,chardev=c"
    becomes(f"-chardev null,id=c,logfile=/x {user}", f"-chardev null,id=c {user}")
    becomes(f"-chardev spicevmc,id=c,name=vdagent {user}", f"-chardev null,id=c {user}")
    becomes(f"-chardev pty,id=c,mux=on {user}", f"-chardev socket,id=c,{sock('c')},mux=on {user}")


def test_monitors_go_with_their_chardevs() -> None:
    becomes(
        "-chardev socket,id=m,path=/x -mon chardev=m,mode=control -qmp unix:/q -monitor stdio",
        "",
    )


def test_agent() -> None:
    port = "-device virtserialport,chardev=ga,name=org.qemu.guest_agent.0"
    findings = becomes(
        f"-chardev socket,id=ga,path=/x,server=on {port}",
        f"-chardev socket,id=ga,{sock('agent')} {port}",
    )
    assert (findings.agent_socket, findings.consoles) == ("agent.sock", [])


def test_lines() -> None:
    becomes(
        "-serial stdio -serial mon:pty -serial none -parallel file:/x -debugcon null",
        "-serial unix:serial0.sock,server=on,wait=off"
        " -serial unix:serial1.sock,server=on,wait=off -serial none"
        " -parallel unix:parallel0.sock,server=on,wait=off -debugcon null",
    )


def test_nographic_keeps_its_console_from_our_input() -> None:
    command = cmdline.parse(["qemu", "-nographic"], "/")
    argv = cmdline.rewrite(command, PLAN).argv
    assert argv[argv.index("-serial") + 1] == "unix:serial0.sock,server=on,wait=off"
    assert "-display" not in argv
    assert rewrite("-nographic")[0] == ["-nographic"]


def test_displays_and_the_process_itself_go() -> None:
    becomes(
        "-vnc :1 -spice port=5900 -display gtk,gl=on -pidfile /p -daemonize -D /log -d int -S"
        " -incoming defer -runas x -chroot /c -add-fd fd=3,set=2 -gdb tcp::1 -s -loadvm x"
        " -snapshot -mem-path /h -mem-prealloc -trace x -run-with user=x -monitor none",
        "",
    )


# Networks


@pytest.mark.parametrize(
    "kind", ["socket,id=n,listen=:1", "vde,id=n", "stream,id=n,addr.type=inet"]
)
def test_networks_are_hubs_of_their_own(kind: str) -> None:
    card = "-device virtio-net-pci,netdev=n"
    becomes(f"-netdev {kind} {card}", f"-netdev hubport,id=n,hubid=4097 {card}")


def test_user_networks_stay_for_their_state_but_lead_nowhere() -> None:
    becomes(
        "-netdev user,id=n,hostfwd=tcp::2222-:22,smb=/x,net=10.0.0.0/24",
        "-netdev user,id=n,net=10.0.0.0/24,restrict=on",
    )
    becomes("-nic user,model=e1000,tftp=/x", "-nic user,model=e1000,restrict=on")
    becomes("-net nic -net user,hostfwd=x", "-net nic -net user,restrict=on")
    becomes("-netdev user,id=n,restrict=off", "-netdev user,id=n,restrict=on")
    becomes("-netdev user,id=n,hostfwd=x", "-netdev user,id=n", network=True)


def test_taps() -> None:
    argv, findings = rewrite(
        *("-netdev", "tap,id=n,ifname=tap7,script=no,vhost=on", "-netdev", "bridge,id=b,br=br0"),
        *("-netdev", '{"type":"tap","fds":"29:30","vhost":true,"vhostfds":"31:32","id":"q"}'),
        *("-nic", "tap,model=virtio,mac=52:54:00:00:00:01"),
        *("-netdev", "tap,id=p,vnet_hdr=off", "-net", "nic", "-net", "tap"),
    )
    assert argv[1::2] == [
        "tap,id=n,fd=@tap0@,vhost=off",
        "tap,id=b,fd=@tap1@,vhost=off",
        "tap,id=q,fds=@tap2@,vhost=off",
        "tap,fd=@tap3@,vhost=off,model=virtio,mac=52:54:00:00:00:01",
        "hubport,id=p,hubid=4097",
        "nic",
    ]
    assert [need.queues for need in findings.taps] == [1, 1, 2, 1]
    assert "cannot be shared" in blocked("-netdev", "tap,id=n", network=True)
    kept("-netdev", "tap,id=n,ifname=tap7", network=True, keep_taps=True)


def test_the_default_network_is_cut_off() -> None:
    for words, found in ((["qemu"], True), (["qemu", "-net", "none"], False)):
        argv = cmdline.rewrite(cmdline.parse(words, "/"), PLAN).argv
        assert ("user,restrict=on" in argv and "nic" in argv) is found


# Memory, machine, objects, devices


def test_mapped_ram() -> None:
    ram = MappedRam("pc.ram", "/s/ram.lsnap", 1 << 30)
    mapped = f"memory-backend-file,id=pc.ram,size={1 << 30},mem-path=/s/ram.lsnap,share=off"
    command = cmdline.parse(["qemu", "-M", "pc,usb=on", "-m", "1G"], "/")
    argv = cmdline.rewrite(command, dataclasses.replace(PLAN, ram=ram)).argv
    assert argv[2] == "pc-i440fx-7.2,usb=on,memory-backend=pc.ram"
    assert argv[argv.index("-object") + 1] == mapped
    command = cmdline.parse(["qemu", "-m", "1G"], "/")
    argv = cmdline.rewrite(command, dataclasses.replace(PLAN, ram=ram)).argv
    assert argv.count("-machine") == 1
    assert argv[argv.index("-machine") + 1] == "pc-i440fx-7.2,memory-backend=pc.ram"
    words = ["qemu", "-M", "pc,memory-backend=m", "-object"]
    own = "memory-backend-memfd,id=m,size=1G,share=on,x-use-canonical-path-for-ramblock-id=off"
    plan = dataclasses.replace(PLAN, ram=dataclasses.replace(ram, block="m"))
    argv = cmdline.rewrite(cmdline.parse([*words, own], "/"), plan).argv
    assert argv[4] == mapped.replace("pc.ram", "m") + ",x-use-canonical-path-for-ramblock-id=off"


@pytest.mark.parametrize(
    "kind",
    [
        "file,id=m,size=1G,mem-path=/dev/shm/x,share=on,prealloc=on,host-nodes=0,policy=bind",
        "memfd,id=m,size=1G,hugetlb=on,hugetlbsize=2M,seal=on",
        "ram,id=m,size=1G,share=on",
    ],
)
def test_memory_is_never_shared_with_the_original(kind: str) -> None:
    becomes(f"-object memory-backend-{kind}", "-object memory-backend-ram,id=m,size=1G")


def test_objects() -> None:
    kept("-object", "iothread,id=i", "-object", "rng-random,id=r,filename=/dev/urandom")
    becomes("-object secret,id=s,file=/k -object filter-dump,id=f,netdev=n,file=/x", "")
    kept("-object", "throttle-group,id=t", "-drive", "if=none,media=cdrom,group=t")
    for kind in ("sev-guest", "tdx-guest", "memory-backend-epc", "cryptodev-vhost-user"):
        assert kind in blocked("-object", f"{kind},id=x")
    assert "'/x'" in blocked("-object", "new-thing,id=x,folder=/x")


def test_devices() -> None:
    kept("-device", "virtio-rng-pci,rng=r", "-device", "intel-hda")
    becomes("-device e1000,romfile=r/x.rom", "-device e1000,romfile=/vm/r/x.rom")
    becomes(
        "-device vmgenid,guid=324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87", "-device vmgenid,guid=auto"
    )
    for kind in ("vfio-pci,host=01:00.0", "usb-host,hostbus=1", "vhost-user-fs-pci,chardev=c"):
        assert kind.split(",", maxsplit=1)[0] in blocked("-device", kind)
    for kind in ("ivshmem-plain,memdev=m", "scsi-block,drive=d", "pci-testdev,fd=5"):
        assert kind.split(",", maxsplit=1)[0] in blocked("-device", kind)
    (_unused, text), findings = rewrite("-device", "vhost-vsock-pci,guest-cid=3,vhostfd=7")
    cid = int(Props("device", text).get("guest-cid"))
    assert 3 < cid < 1 << 31 and not findings.blockers and "vhostfd" not in text


def test_sound() -> None:
    becomes(
        "-audiodev pa,id=a,server=/x -device hda-micro,audiodev=a",
        "-audiodev none,id=a -device hda-micro,audiodev=a",
    )
    becomes("-audio wav,path=/x,model=hda", "-audio none,model=hda")


def test_files_of_the_machine() -> None:
    becomes(
        "-kernel vmlinuz -initrd ./i -append root=/dev/vda -bios bios.bin -dtb /d -L /share",
        "-kernel /vm/vmlinuz -initrd /vm/i -append root=/dev/vda -bios bios.bin -dtb /d -L /share",
    )
    becomes(
        "-fw_cfg opt/x,file=y -smbios type=11,path=z",
        "-fw_cfg opt/x,file=/vm/y -smbios type=11,path=/vm/z",
    )
    becomes("-acpitable sig=X,data=a:b", "-acpitable sig=X,data=/vm/a:/vm/b")
    command = cmdline.parse(["q", "-kernel", "k", "-bios", "b", "-fw_cfg", "x,file=/y"], "/vm")
    assert command.machine_files() == ["/vm/k", "/vm/b", "/y"]


def test_what_the_machine_is_stays() -> None:
    kept(*("-cpu", "host,+vmx", "-smp", "2", "-m", "size=1G,slots=2,maxmem=2G", "-rtc", "base=utc"))
    kept("-sandbox", "on,spawn=deny", "-uuid", "u", "-global", "a.b=/c", "-boot", "order=c")
    becomes("-overcommit mem-lock=on -L share", "-L /vm/share")
    kept("-overcommit", "cpu-pm=on")
    kept("-smbios", "type=1,serial=x", "-vga", "std", "-usb", "-device", "usb-tablet")
    becomes("-name guest=web1,process=x,debug-threads=on", "-name web1.c,debug-threads=on")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("-tpmdev emulator,id=t,chardev=c", "TPM"),
        ("-virtfs local,path=/x,mount_tag=t", "folder of the host"),
        ("-fsdev local,id=f,path=/x", "folder of the host"),
        ("-readconfig /x", "/x"),
        ("-icount shift=1,rr=record,rrfile=x", "rrfile"),
        ("-netdev vhost-user,id=n", "vhost-user"),
        ("-netdev vhost-vdpa,id=n", "vhost-vdpa"),
        ("-something path=/x", "-something path=/x"),
        ("-something fd=3", "-something fd=3"),
        ("-something ./x", "-something ./x"),
        ("-machine confidential-guest-support=sev0", "sev0"),
    ],
)
def test_blockers(words: str, told: str) -> None:
    assert told in blocked(*words.split())


def test_unknown_options_without_a_path_stay() -> None:
    kept("-something", "a=b,c", "-other", "x")


def test_blockers_are_known_without_a_plan() -> None:
    good = ["qemu", "-M", "pc", "-drive", "file=a,if=virtio", "-netdev", "tap,id=n"]
    assert cmdline.parse(good, "/").restore_blockers() == []
    assert len(cmdline.parse([*good, "-tpmdev", "passthrough,id=t"], "/").restore_blockers()) == 1


def test_ids() -> None:
    words = ["q", "-device", "x,id=a", "-device", '{"driver":"y","id":"b"}', "-device", "z"]
    assert cmdline.parse(words, "/").device_ids() == ["a", "b"]


NAMES = "drive blockdev chardev device object netdev nic net machine M name serial m hda cdrom"
NAMES += " pflash fw_cfg smbios audiodev run-with overcommit icount tpmdev unknown bios L fda"
VALUES = ["", "{", "{}", '{"a":[1]}', '{"driver":3}', '{"node-name":[1]}', "a", "id=", "=", "=,="]
VALUES += ["if=ide,index=x", "if=scsi,bus=y", "file=", ",,,", "tap,queues=z", "tap,fds=", "-"]
VALUES += ["driver=qcow2,node-name=a,file=a", "type", "tap,queues=-1", "\udcff", "\u00b2"]


@settings(deadline=None)  # other work on the machine is no failure
@given(st.lists(st.tuples(st.sampled_from(NAMES.split()), st.lists(st.sampled_from(VALUES)))))
def test_nonsense_is_no_crash(words: list[tuple[str, list[str]]]) -> None:
    """Blockers are asked for while a snapshot is taken: that must not fail because of them."""
    argv = [word for name, values in words for word in (f"-{name}", ",".join(values))]
    command = cmdline.parse(["qemu", *argv], "/vm")
    command.restore_blockers()
    command.machine_files()
