"""The folders that compilers are told of: some paths do not get through a shell or a build.ninja as they are."""

import shlex

from rayprep.base.errors import ErrorType
from rayprep.model.plan import Unable
from rayprep.model.signature import Signature


def unable_under(signature: Signature, library: str) -> Unable | None:
    """Why `library` cannot compile here, where the caches or the libraries lie under such a path.

    DeepGEMM (csrc/jit/compiler.hpp), FlashInfer (jit/cpp_ext.py) and tvm_ffi (cpp/extension.py) write their paths
    into a command of a shell or into a build.ninja unquoted; to ninja, a colon ends a list of outputs, and to DeepGEMM
    from 0.2 on a folder of its cache's (include/deep_jit/cache/disk.hpp).
    """
    for folder in (signature.profiles_root, signature.install_prefix):
        if shlex.quote(folder) != folder or ":" in folder:
            message = f"{library} cannot compile under {folder!r}: it hands the path to a shell and to ninja unquoted"
            return Unable(error_type=ErrorType.UNSUPPORTED, message=message, hint=remedy(folder, signature))
    return None


def remedy(folder: str, signature: Signature) -> str:
    """For one of the two whose path a compiler cannot take."""
    if folder == signature.profiles_root:
        return "choose another --profiles-root"
    return "install the libraries under another path"
