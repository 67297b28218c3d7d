# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""RAM images, read through liblivesnap-image.so by cffi in ABI mode (docs/image-library.md).

    with RamImage.open("ram.lsnap", library="native/build/liblivesnap-image.so") as image:
        image.blocks, image.ranges, image.string("machine")
        image.read_physical(0x1000, 16)

What is given out was compared with its checksum. Errors are ImageError, of class usage, storage,
torn or internal.
"""

from __future__ import annotations

import importlib
import uuid
from dataclasses import dataclass
from typing import Any, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._closing import Closing
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError

#: What native/lib/livesnap_image.h declares; a test compares.
CDEF = """
struct livesnap_image;
enum livesnap_image_class {
    LIVESNAP_IMAGE_USAGE = 1,
    LIVESNAP_IMAGE_STORAGE = 5,
    LIVESNAP_IMAGE_TORN = 6,
    LIVESNAP_IMAGE_INTERNAL = 7
};
struct livesnap_image_error {
    int error_class;
    int system_error;
    char reason[32];
    char message[480];
};
struct livesnap_image_about {
    uint32_t version;
    uint32_t blocks;
    uint32_t ranges;
    uint32_t main_block;
    uint64_t ram_bytes;
    uint64_t zero_bytes;
    uint64_t stored_bytes;
    uint64_t file_bytes;
    uint8_t id[16];
    char checksum[33];
    char compression[8];
};
struct livesnap_image_block {
    uint64_t length;
    uint64_t page_size;
    char name[256];
};
struct livesnap_image_range {
    uint64_t address;
    uint64_t offset;
    uint64_t length;
    uint32_t block;
};
int livesnap_image_open(const char *path, struct livesnap_image **image,
                        struct livesnap_image_error *error);
void livesnap_image_close(struct livesnap_image *image);
void livesnap_image_describe(const struct livesnap_image *image,
                             struct livesnap_image_about *about);
int livesnap_image_block(const struct livesnap_image *image, uint32_t index,
                         struct livesnap_image_block *block);
int livesnap_image_range(const struct livesnap_image *image, uint32_t index,
                         struct livesnap_image_range *range);
const char *livesnap_image_string(const struct livesnap_image *image, const char *key);
int livesnap_image_read(struct livesnap_image *image, uint32_t block, uint64_t offset, void *buffer,
                        uint64_t length, struct livesnap_image_error *error);
int livesnap_image_read_physical(struct livesnap_image *image, uint64_t address, void *buffer,
                                 uint64_t length, struct livesnap_image_error *error);
int livesnap_image_verify_range(struct livesnap_image *image, uint32_t block, uint64_t offset,
                                uint64_t length, struct livesnap_image_error *error);
int livesnap_image_verify(struct livesnap_image *image, struct livesnap_image_error *error);
"""

_CLASSES = {1: "usage", 5: "storage", 6: "torn", 7: "internal"}
_U64 = 1 << 64


class ImageError(LivesnapError):
    """An image cannot be read. `word` is the class: usage, storage, torn, internal, closed, or
    library where there is no library to read it with; `reason` a word for programs."""

    def __init__(self, msg: str, word: str, reason: str = "", system_error: int = 0) -> None:
        super().__init__(msg)
        self.word = word
        self.reason = reason
        self.system_error = system_error


@dataclass(frozen=True)
class Block:
    """A RAMBlock of QEMU's. Sizes in bytes."""

    index: int
    name: str
    length: int
    page_size: int


@dataclass(frozen=True)
class Range:
    """`length` bytes at guest-physical `address` are block number `block` from `offset` on."""

    address: int
    offset: int
    length: int
    block: int


@dataclass(frozen=True)
class About:
    """What an image says of itself. Sizes in bytes; main_block is an index."""

    version: int
    id: str
    checksum: str
    compression: str
    ram_bytes: int
    zero_bytes: int
    stored_bytes: int
    file_bytes: int
    main_block: int


class RamImage(Closing):
    """An open image. Use as a context manager, or close() it. One thread at a time."""

    def __init__(self, ffi: Any, library: Any, handle: Any) -> None:
        """Of what open() has opened."""
        self._ffi = ffi
        self._library = library
        self._handle: Any = handle
        self.about = self._about()
        self.blocks = self._blocks()
        self.ranges = self._ranges()

    @classmethod
    def open(cls, path: str, library: str) -> RamImage:
        """Open an image; reads its index. `library`: the path of liblivesnap-image.so."""
        ffi, loaded = _load(library)
        handle = ffi.new("struct livesnap_image **")
        error = ffi.new("struct livesnap_image_error *")
        if loaded.livesnap_image_open(path.encode("utf-8", "surrogateescape"), handle, error):
            raise _error(ffi, error)
        try:
            return cls(ffi, loaded, handle[0])
        except BaseException:
            loaded.livesnap_image_close(handle[0])
            raise

    def close(self) -> None:
        if self._handle is not None:
            self._library.livesnap_image_close(self._handle)
            self._handle = None

    def string(self, key: str) -> Optional[str]:
        """What the image says of its guest: machine, qemu_version, arch; None for other keys."""
        found = self._library.livesnap_image_string(self._open(), key.encode())
        return None if found == self._ffi.NULL else str(self._ffi.string(found).decode())

    def read(self, block: int, offset: int, length: int) -> bytes:
        """Bytes of a block."""
        return self._read(self._library.livesnap_image_read, (block, offset), length)

    def read_physical(self, address: int, length: int) -> bytes:
        """Bytes at a guest-physical address; what is no RAM is an error of class usage."""
        return self._read(self._library.livesnap_image_read_physical, (address,), length)

    def verify(self) -> None:
        """Read all of the file; ImageError of class torn names the first bad place."""
        self._call(self._library.livesnap_image_verify)

    def verify_range(self, block: int, offset: int, length: int) -> None:
        """Read a range of a block."""
        _check(block, offset, length)
        self._call(self._library.livesnap_image_verify_range, block, offset, length)

    def _read(self, function: Any, where: tuple[int, ...], length: int) -> bytes:
        _check(*where, length)
        if length > self.about.ram_bytes:
            raise ImageError(f"{length} bytes are more than there is RAM", "usage", "address")
        buffer = self._ffi.new("unsigned char[]", max(1, length))
        self._call(function, *where, buffer, length)
        return bytes(self._ffi.buffer(buffer, length))

    def _call(self, function: Any, *arguments: Any) -> None:
        error = self._ffi.new("struct livesnap_image_error *")
        if function(self._open(), *arguments, error):
            raise _error(self._ffi, error)

    def _open(self) -> Any:
        if self._handle is None:
            raise ImageError("the RAM image was closed", "closed")
        return self._handle

    def _about(self) -> About:
        found = self._ffi.new("struct livesnap_image_about *")
        self._library.livesnap_image_describe(self._open(), found)
        return About(
            version=int(found.version),
            id=str(uuid.UUID(bytes=bytes(found.id))),
            checksum=self._text(found.checksum),
            compression=self._text(found.compression),
            ram_bytes=int(found.ram_bytes),
            zero_bytes=int(found.zero_bytes),
            stored_bytes=int(found.stored_bytes),
            file_bytes=int(found.file_bytes),
            main_block=int(found.main_block),
        )

    def _blocks(self) -> tuple[Block, ...]:
        one = self._ffi.new("struct livesnap_image_block *")
        found: list[Block] = []
        while not self._library.livesnap_image_block(self._open(), len(found), one):
            name, length = self._text(one.name), int(one.length)
            found.append(Block(len(found), name, length, int(one.page_size)))
        return tuple(found)

    def _ranges(self) -> tuple[Range, ...]:
        one = self._ffi.new("struct livesnap_image_range *")
        found: list[Range] = []
        while not self._library.livesnap_image_range(self._open(), len(found), one):
            found.append(Range(int(one.address), int(one.offset), int(one.length), int(one.block)))
        return tuple(found)

    def _text(self, array: Any) -> str:
        return str(self._ffi.string(array).decode("ascii", "replace"))


def _check(*numbers: int) -> None:
    """What C would take for another number."""
    for number in numbers:
        if not 0 <= number < _U64:
            raise ImageError(f"{number} is no address or length", "usage", "address")


def _load(path: str) -> tuple[Any, Any]:
    try:
        ffi = importlib.import_module("cffi").FFI()
    except ImportError:
        raise ImageError("Python package 'cffi' is not installed", "library") from None
    ffi.cdef(CDEF)
    try:
        return ffi, ffi.dlopen(path)
    except OSError as err:
        raise ImageError(f"library '{path}' cannot be loaded: {err}", "library") from None


def _error(ffi: Any, error: Any) -> ImageError:
    def text(array: Any) -> str:
        return str(ffi.string(array).decode("utf-8", "replace"))

    return ImageError(
        text(error.message),
        _CLASSES.get(int(error.error_class), "internal"),
        text(error.reason),
        int(error.system_error),
    )
