"""The registry of data sets by name: a new one is a function that returns an ``ImageDataset``, and an entry here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from omegaconf import DictConfig, open_dict
from pydantic import Field

from datasets.arrays import array, describe_array
from datasets.folders import ClassNames, folder
from datasets.imagenet import imagenet32, imagenet64c
from datasets.images import ImageDataset, cifar10, digits, fake
from datasets.options import DataOptions, ImageOptions, ShapeOptions
from datasets.patches import patches
from datasets.shape import data_shape
from utils.errors import InputError
from utils.options import Option, check_name, check_section, options_of, plain

DATASETS: dict[str, Callable[..., ImageDataset]] = {
    "digits": digits,
    "patches": patches,
    "fake": fake,
    "cifar10": cifar10,
    "imagenet32": imagenet32,
    "imagenet64c": imagenet64c,
    "folder": folder,
    "array": array,
}
# Functions of the section ``data`` that return the keys which a data set's files determine, where they are null.
DESCRIPTIONS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {"array": describe_array}
ClassCounts = Annotated[Sequence[Annotated[int, Field(ge=0, le=10**12)]], Field(min_length=1, max_length=10**6)]
# What a run adds to its section ``data``: the names of the classes, and the number of training samples of each.
RECORDED = {"class_names": Option(ClassNames, required=False), "class_counts": Option(ClassCounts, required=False)}
GIVEN = ("train", "dataroot", "plain_order")  # parameters of a data set's function that are no options of ``data``


def data_options(dataset: str, has_shape: bool = False) -> dict[str, Option]:
    """Return the options of the section ``data`` for a data set: those of every data set, and its own.

    Args:
        dataset: name in ``DATASETS``.
        has_shape: whether the section has ``shape`` instead of ``image_size`` and ``num_channels``.

    Raises:
        InputError: for an unknown data set.
    """
    check_name("data.dataset", dataset, DATASETS)
    shared = options_of(DataOptions) | options_of(ShapeOptions if has_shape else ImageOptions)
    own = options_of(DATASETS[dataset], leave_out=(*GIVEN, "shape", "image_size", "num_channels", *shared))
    return shared | own


def all_data_options() -> dict[str, Option]:
    """Return the options of the section ``data`` of all data sets together, and what runs add to it."""
    options: dict[str, Option] = dict(RECORDED)
    for dataset in DATASETS:
        options |= data_options(dataset) | data_options(dataset, has_shape=True)
    return options


def complete_data(data: DictConfig) -> None:
    """Set the keys of the section ``data`` that are null to what the files of the data set say.

    Raises:
        InputError: naming the key or file at fault.
    """
    name = str(data.dataset).lower()
    if name not in DESCRIPTIONS:
        return
    values = plain(data)
    given = {key: value for key, value in values.items() if value is not None}
    options = data_options(name, has_shape=True)
    check_section(given, {key: replace(option, required=False) for key, option in options.items()}, "data")
    with open_dict(data):
        data.update(DESCRIPTIONS[name](values))


def load_images(
    dataset: str,
    train: bool,
    *,
    num_classes: int = 0,
    classes: bool = True,
    dataroot: str = "datasets",
    random_flip: bool = False,
    random_crop: int = 0,
    augment: float = 0.0,
    dequantize: bool = False,
    **options: Any,
) -> ImageDataset:
    """Load one split of a data set, which is downloaded or cached first if necessary.

    Args:
        dataset: name in ``DATASETS``, in upper or lower case.
        train: whether to load the training split instead of the held-out one.
        num_classes: number of classes in the configuration.
        classes: whether the samples have classes.
        dataroot: folder of the data sets on disk and of the cache.
        random_flip: whether the samples will be mirrored, which only images can be.
        random_crop: how much larger than ``image_size`` the images are that windows are cut from.
        augment: probability of an augmentation, which only images can have.
        dequantize: whether noise will be added within the grey levels, which only quantized values have.
        options: further keys of the section ``data``, among them ``shape``, or ``image_size`` and ``num_channels``;
            all are passed to the function in ``DATASETS``.

    Raises:
        InputError: if the data set is unknown, its files are missing, or it does not match the configuration.
    """
    name = dataset.lower()
    check_name("data.dataset", name, DATASETS)
    shape = data_shape(options)
    if random_crop:
        options["image_size"] += random_crop
    images = DATASETS[name](train=train, num_classes=num_classes, classes=classes, dataroot=dataroot, **options)
    if random_crop and images.shape != data_shape(options):
        raise InputError(f"data.random_crop={random_crop}: data.dataset={dataset} has images of its own size only")
    if random_crop:
        images = images.crop(random_crop)
    if images.shape != shape:
        keys = "data.shape asks" if options.get("shape") is not None else "data.num_channels and data.image_size ask"
        raise InputError(f"data.dataset={dataset} has samples of shape {images.shape}, but {keys} for {shape}")
    if classes and num_classes and num_classes != images.num_classes:
        raise InputError(f"data.num_classes={num_classes}, but data.dataset={dataset} has {images.num_classes}")
    if images.cond_size != (options.get("cond_size") or 0):
        raise InputError(
            f"data.cond_size={options.get('cond_size') or 0}, but the condition of data.dataset={dataset} has "
            f"{images.cond_size} values"
        )
    if images.labels.isinf().any():
        raise InputError(f"data.dataset={dataset} has conditions that are not finite")
    names = options.get("class_names")
    if names is not None and "class_names" not in options_of(DATASETS[name]) and tuple(names) != images.class_names:
        raise InputError(f"data.class_names={list(names)}, but data.dataset={dataset} has {list(images.class_names)}")
    for key, value, verb in (("random_flip", random_flip, "mirror"), ("augment", augment, "augment")):
        if value and not images.is_image:
            raise InputError(f"data.{key}={value}: data.dataset={dataset} has no images to {verb}")
    if images.levels is None and dequantize:
        raise InputError(f"data.dequantize={dequantize}: data.dataset={dataset} has no grey levels")
    if images.levels is None and images.units is None:
        low, high = images.data.aminmax()
        if not (low >= 0 and high <= 1):  # or not a number
            raise InputError(f"data.dataset={dataset} has values from {low:g} to {high:g}, not in [0, 1]")
    return images


def load_configured(
    data: DictConfig, train: bool, dataroot: str, root: str | None, held_out: str | None = None
) -> ImageDataset:
    """Load one split of the data set that the section ``data`` of a configuration describes.

    Args:
        data: section of the configuration of a run; one from before ``data.class_names`` numbers its classes by the
            plain order of their names.
        train: whether to load the training split instead of the held-out one.
        dataroot: folder of the data sets on disk and of the cache.
        root: folder of the images of ``data.dataset=folder``, or file of ``array``.
        held_out: file of the held-out rows of ``array``.

    Raises:
        InputError: as ``load_images``, or if the held-out rows of the run were in a file that is not given.
    """
    if held_out is None and data.get("held_out") is not None:
        raise InputError(
            f"data.held_out is missing: the run was trained with held-out rows in a file of their own, {data.held_out}"
        )
    options = plain(data) | {"dataroot": dataroot, "root": root, "held_out": held_out}
    options |= {"plain_order": "class_names" not in data}
    options.pop("class_counts", None)  # of the training split, which is loaded here
    return load_images(str(options.pop("dataset")), train, **options)
