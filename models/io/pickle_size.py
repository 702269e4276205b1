"""How much a pickle makes of its bytes, seen before it is read: a few can ask for any amount of memory or time."""

import enum
import io
import pickletools

# A tensor takes some 90 bytes and 32 operations of a pickle; the largest published checkpoint has 4,800 of them.
LARGEST_PICKLE = 2**23  # bytes
MOST_OPERATIONS = 50_000  # and for each entry of the archive
OPERATIONS_OF_ENTRY = 50
MOST_OPERATIONS_OF_OLD_FILE = 250_000
MOST_NAMES = 1000  # of functions and types, each of which is written once
LARGEST_COPY = 2**22  # values and characters that the calls of a pickle are given
PICKLES_OF_OLD_FILE = 5  # of the form before PyTorch 1.6, ahead of its numbers

# How many values an operation of a pickle takes off the stack, None: as many as there are since a mark; which of them
# copy these values, and which add them to what is below, instead of leaving what they make of them.
TAKES = {
    **{"APPEND": 1, "APPENDS": None, "SETITEM": 2, "SETITEMS": None, "BUILD": 1, "REDUCE": 2, "NEWOBJ": 2},
    **{"TUPLE": None, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "BINPERSID": 1},
}
CALLS = ("REDUCE", "NEWOBJ", "BUILD", "BINPERSID")
ADDS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")

# Values that are hashed in a moment, few of which have one hash: Python makes no difference between -1 and -2, complex
# numbers and long integers can be chosen to have the same, and a tuple of tuples can take forever.
KEY_OPERATIONS = ("BINUNICODE", "SHORT_BINSTRING", "BININT", "BININT1", "BININT2", "NONE", "NEWTRUE", "NEWFALSE")
NOT_PLAIN = "its pickle holds more than the tensors and plain values of a checkpoint"
LONGEST_KEY = 8  # bytes of an integer
HASH = ("OrderedDict", "Counter", "set")  # what they are given
KNOWN_MODULES = ("torch", "collections", "__builtin__", "builtins")  # whose objects keep a state as attributes


class _Kind(enum.Enum):
    """What a value is, as far as it matters for what is hashed."""

    KEY = enum.auto()
    KEYS = enum.auto()  # a list or tuple of them
    DICT = enum.auto()
    ARGUMENT = enum.auto()  # a tuple of one of the two
    IDENTITY = enum.auto()  # a tuple of keys and names, such as a pickle calls a storage
    HASHING = enum.auto()  # a name in HASH
    NAME = enum.auto()  # of a function or type
    FOREIGN = enum.auto()  # one that the reader does not take, or that is no type with attributes
    MADE = enum.auto()  # by a function
    OTHER = enum.auto()


class _Value:
    """What is known of a value.

    Attributes:
        size: how many values and characters it holds, each as often as it can be reached.
        kind: what it is.
        named: whether the pickle has it in more than one place.
    """

    __slots__ = ("kind", "named", "size")

    def __init__(self, kind: _Kind, size: int = 1) -> None:
        self.kind, self.size, self.named = kind, size, False


class _TooMuchError(ValueError):
    """A pickle makes something large of little."""


def check_pickle(data: bytes, entries: int) -> None:
    """Raise ValueError, saying what is too much, if a pickle is large or makes something large of little.

    Args:
        data: the first ``LARGEST_PICKLE`` bytes of it, and one more if it is longer.
        entries: of the archive that it is in, of which each tensor has one.
    """
    _check(data, 1, MOST_OPERATIONS + OPERATIONS_OF_ENTRY * entries)


def check_pickles_of_old_file(data: bytes) -> None:
    """Raise ValueError as ``check_pickle`` does, for the pickles that a file from before PyTorch 1.6 starts with.

    Also if they are not whole: the reader would make room for whatever length they claim.

    Args:
        data: the first ``LARGEST_PICKLE`` bytes of the file, and one more if it is longer.
    """
    _check(data, PICKLES_OF_OLD_FILE, MOST_OPERATIONS_OF_OLD_FILE)


def _check(data: bytes, number: int, most_operations: int) -> None:
    """Check so many pickles, one after the other, as ``check_pickle`` does one.

    A call copies its arguments, however often a pickle names the same ones. The values are followed as far as their
    sizes and kinds go, each an object, shared where it is one object. What else is wrong with a pickle is left to the
    reader, which stops at the same operation.
    """
    stream, operations, copied, names = io.BytesIO(data), 0, 0, 0
    try:
        for _ in range(number):
            stack: list[_Value] = []
            marks: list[int] = []
            memo: dict[object, _Value] = {}
            for operation, argument, _ in pickletools.genops(stream):
                operations += 1
                if operations > most_operations:
                    raise _TooMuchError(f"its pickle has more than {most_operations:,} operations")
                name = operation.name
                if name in TAKES:
                    takes = TAKES[name]
                    first = marks.pop() if takes is None else len(stack) - takes
                    taken = stack[first:]
                    size = sum([item.size for item in taken])
                    if size > LARGEST_PICKLE:
                        raise _TooMuchError("its pickle repeats the same values too often")
                    del stack[first:]
                    if name in CALLS:
                        copied += size
                    if copied >= LARGEST_COPY:
                        raise _TooMuchError("its pickle copies the same values too often")
                    if name in ADDS:
                        _add(name, stack[-1], taken)
                    else:
                        stack.append(_make(name, taken, size))
                elif name in ("BINPUT", "LONG_BINPUT"):
                    memo[argument] = stack[-1]
                elif name in ("BINGET", "LONG_BINGET"):
                    memo[argument].named = True
                    stack.append(memo[argument])
                elif name == "MARK":
                    marks.append(len(stack))
                elif name in KEY_OPERATIONS:
                    stack.append(_Value(_Kind.KEY, 1 + len(argument) if isinstance(argument, str) else 1))
                elif name == "LONG1":
                    short = -(2 ** (8 * LONGEST_KEY - 1)) <= argument < 2 ** (8 * LONGEST_KEY - 1)
                    stack.append(_Value(_Kind.KEY if short else _Kind.OTHER))
                elif name == "GLOBAL":
                    names += 1
                    module, _, function = str(argument).partition(" ")
                    if names > MOST_NAMES or function == "bytearray":  # which may be made of any size
                        raise _TooMuchError(NOT_PLAIN)
                    known = module.split(".")[0] in KNOWN_MODULES
                    kind = _Kind.HASHING if function in HASH else _Kind.NAME if known else _Kind.FOREIGN
                    stack.append(_Value(kind))
                elif name in ("EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_SET"):
                    stack.append(_Value(_Kind.KEYS))
                elif name == "EMPTY_DICT":
                    stack.append(_Value(_Kind.DICT))
                elif name == "BINFLOAT":
                    stack.append(_Value(_Kind.OTHER))
                elif name not in ("PROTO", "STOP"):
                    raise _TooMuchError("its pickle is damaged, or not of protocol 2")
    except _TooMuchError:
        raise
    except (ValueError, IndexError, KeyError) as error:
        if len(data) > LARGEST_PICKLE:
            raise ValueError(f"its pickle has more than {LARGEST_PICKLE:,} bytes") from error
        if number > 1:
            raise ValueError("it is damaged, or no checkpoint") from error


def _add(operation: str, below: _Value, taken: list[_Value]) -> None:
    """Add values to what is ``below`` them."""
    kinds = {item.kind for item in taken}
    made = below.kind is _Kind.MADE
    if below.named and (made or operation != "BUILD"):  # its size is part of that of others by now
        raise _TooMuchError("its pickle changes a value that it has put elsewhere")
    if operation in ("SETITEM", "SETITEMS") and any(item.kind is not _Kind.KEY for item in taken[::2]):
        raise _TooMuchError("its pickle has other keys than text and short integers")
    if _Kind.HASHING in kinds or (operation == "BUILD" and made and not kinds <= {_Kind.DICT, _Kind.KEYS}):
        raise _TooMuchError(NOT_PLAIN)
    if below.kind is _Kind.KEYS and kinds != {_Kind.KEY}:
        below.kind = _Kind.OTHER
    below.size += sum([item.size for item in taken])


def _make(operation: str, taken: list[_Value], size: int) -> _Value:
    """Make a tuple of values, or what a call makes of them."""
    kinds = {item.kind for item in taken}
    if operation in ("REDUCE", "NEWOBJ"):
        function, arguments = taken
        if function.kind is _Kind.HASHING and arguments.kind not in (_Kind.KEYS, _Kind.ARGUMENT):
            raise _TooMuchError("its pickle has other keys than text and short integers")
        return _Value(_Kind.OTHER if function.kind is _Kind.FOREIGN else _Kind.MADE, 1 + size)
    if operation == "BINPERSID":
        if taken[0].kind not in (_Kind.KEY, _Kind.KEYS, _Kind.IDENTITY):
            raise _TooMuchError(NOT_PLAIN)
        return _Value(_Kind.MADE)
    if _Kind.HASHING in kinds:  # which another function could call
        raise _TooMuchError(NOT_PLAIN)
    if kinds <= {_Kind.KEY}:
        kind = _Kind.KEYS
    elif kinds <= {_Kind.KEY, _Kind.NAME}:
        kind = _Kind.IDENTITY
    else:
        kind = _Kind.ARGUMENT if len(taken) == 1 and kinds <= {_Kind.KEYS, _Kind.DICT} else _Kind.OTHER
    return _Value(kind, 1 + size)
