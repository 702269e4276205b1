"""The data sets by their names. A new one is a function that returns ``ImageDataset`` and an entry here."""

from collections.abc import Callable, Sequence

from omegaconf import DictConfig

from datasets.folders import folder, imagenet32, imagenet64c
from datasets.images import ImageDataset, cifar10, digits, fake
from utils.checks import OneOf
from utils.errors import InputError

DATASETS: dict[str, Callable[..., ImageDataset]] = {
    "digits": digits,
    "fake": fake,
    "cifar10": cifar10,
    "imagenet32": imagenet32,
    "imagenet64c": imagenet64c,
    "folder": folder,
}


def load_images(
    dataset: str,
    train: bool,
    *,
    image_size: int,
    num_channels: int,
    num_classes: int,
    classes: bool = True,
    dataroot: str = "datasets",
    root: str | None = None,
    background: str = "white",
    white: float | None = None,
    class_names: Sequence[str] | None = None,
    plain_order: bool = False,
) -> ImageDataset:
    """Load one split of a data set, which is prepared first if that was not done yet.

    Args:
        dataset: a name in ``DATASETS``, in any case.
        train: the training split, or the held-out one.
        image_size, num_channels, num_classes, classes: what the configuration says of it.
        dataroot: folder of the data sets that live on disk, and of the packs.
        root, background, white, class_names, plain_order: of ``folder``, see there.

    Raises:
        InputError: if there is no such data set, it is not there, or it is not what the configuration says.
    """
    OneOf(tuple(DATASETS))("data.dataset", dataset.lower())
    images = DATASETS[dataset.lower()](
        train=train,
        image_size=image_size,
        num_channels=num_channels,
        num_classes=num_classes,
        classes=classes,
        dataroot=dataroot,
        root=root,
        background=background,
        white=white,
        class_names=class_names,
        plain_order=plain_order,
    )
    shape = (num_channels, image_size, image_size)
    if tuple(images.pixels.shape[1:]) != shape:
        raise InputError(
            f"data.dataset={dataset} has images of {tuple(images.pixels.shape[1:])}, but data.num_channels and "
            f"data.image_size ask for {shape}"
        )
    if classes and num_classes and num_classes != images.num_classes:
        raise InputError(f"data.num_classes={num_classes}, but data.dataset={dataset} has {images.num_classes}")
    return images


def load_configured(data: DictConfig, train: bool, dataroot: str, root: str | None) -> ImageDataset:
    """Load one split of the data set that the section ``data`` of a configuration describes.

    Args:
        data: of a run; one from before ``data.class_names`` numbers its classes by the plain order of their names.
        train: the training split, or the held-out one.
        dataroot: folder of the data sets that live on disk, and of the packs.
        root: of ``folder``: where its images are.

    Raises:
        InputError: as ``load_images``.
    """
    return load_images(
        str(data.get("dataset")),
        train,
        image_size=data.image_size,
        num_channels=data.num_channels,
        num_classes=data.num_classes,
        classes=data.classes,
        dataroot=dataroot,
        root=root,
        background=data.get("background", "white"),
        white=data.get("white"),
        class_names=data.get("class_names"),
        plain_order="class_names" not in data,
    )
