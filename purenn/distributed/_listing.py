"""Reading the list of what is in a distributed checkpoint, which torch keeps as a pickle, without running any of it."""

import pickle
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as lists
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata

_OF_LISTS = {
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "Metadata",
    "MetadataIndex",
    "StorageMeta",
    "TensorProperties",
    "TensorStorageMetadata",
    "_MEM_FORMAT_ENCODING",
}


class _Unpickler(pickle.Unpickler):
    """Makes records, shapes and dtypes, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if module == lists.__name__ and name in _OF_LISTS:
            return getattr(lists, name)
        if (module, name) == (filesystem.__name__, "_StorageInfo"):
            return filesystem._StorageInfo
        if (module, name) == ("torch.serialization", "_get_layout"):
            return torch.serialization._get_layout
        if module.partition(".")[0] == "pathlib":
            return PurePath  # where it was saved
        found = getattr(torch, name, None) if module == "torch" else None
        if found is torch.Size or isinstance(found, torch.dtype):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a list of tensors")


class Reader(filesystem.FileSystemReader):
    """torch's reader of folders, with a list of which nothing but data is taken."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The list.

        Raises:
            pickle.UnpicklingError: there are other things in it.
            Exception: what goes wrong in reading something that is no such list.
        """
        folder = Path(self.path)
        with open(folder / ".metadata", "rb") as file:
            found = _Unpickler(file).load()
        if not isinstance(found, Metadata):
            raise pickle.UnpicklingError(f"it is a {type(found).__name__}")
        for part in found.storage_data.values():
            if Path(part.relative_path).name != part.relative_path:
                raise pickle.UnpicklingError(f"it names the file {part.relative_path!r}")
            if not (folder / part.relative_path).is_file():
                raise FileNotFoundError(f"there is no file {part.relative_path}")
        for name, entry in found.state_dict_metadata.items():
            chunks = entry.chunks if isinstance(entry, TensorStorageMetadata) else []
            if any(MetadataIndex(name, chunk.offsets) not in found.storage_data for chunk in chunks):
                raise ValueError(f"it does not say where {name!r} is")
        found.storage_meta = StorageMeta(load_id=self.load_id)
        return found
