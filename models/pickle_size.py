"""How much a pickle makes of its bytes, seen before it is read: a few can ask for any amount of memory or time."""

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
CALLS = ("REDUCE", "NEWOBJ", "BUILD")
ADDS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")


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
    sizes go, each a list of one number, shared where it is one object. What else is wrong with a pickle is left to the
    reader, which stops at the same operation.
    """
    stream, operations, copied, names = io.BytesIO(data), 0, 0, 0
    plain_value = [1]
    try:
        for _ in range(number):
            stack: list[list[int]] = []
            marks: list[int] = []
            memo: dict[object, list[int]] = {}
            for operation, argument, _ in pickletools.genops(stream):
                operations += 1
                if operations > most_operations:
                    raise _TooMuchError(f"its pickle has more than {most_operations:,} operations")
                name = operation.name
                if name in TAKES:
                    takes = TAKES[name]
                    first = marks.pop() if takes is None else len(stack) - takes
                    size = min(sum([item[0] for item in stack[first:]]), LARGEST_COPY)
                    del stack[first:]
                    if name in CALLS:
                        copied += size
                    if copied >= LARGEST_COPY:
                        raise _TooMuchError("its pickle copies the same values too often")
                    if name in ADDS:
                        stack[-1][0] = min(stack[-1][0] + size, LARGEST_COPY)
                    else:
                        stack.append([1 if name == "BINPERSID" else 1 + size])
                elif name in ("BINPUT", "LONG_BINPUT"):
                    memo[argument] = stack[-1]
                elif name in ("BINGET", "LONG_BINGET"):
                    stack.append(memo[argument])
                elif name == "MARK":
                    marks.append(len(stack))
                elif name == "BINUNICODE":
                    stack.append([1 + len(str(argument))])
                elif name == "GLOBAL":
                    names += 1
                    if names > MOST_NAMES or str(argument).endswith(" bytearray"):  # which may be made of any size
                        raise _TooMuchError("its pickle holds more than the tensors and plain values of a checkpoint")
                    stack.append(plain_value)
                elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"):
                    stack.append([1])
                elif name not in ("PROTO", "STOP"):
                    stack.append(plain_value)
    except _TooMuchError:
        raise
    except (ValueError, IndexError, KeyError) as error:
        if len(data) > LARGEST_PICKLE:
            raise ValueError(f"its pickle has more than {LARGEST_PICKLE:,} bytes") from error
        if number > 1:
            raise ValueError("it is damaged, or no checkpoint") from error
