"""How NIXL's OBJ backend, and the AWS client inside it, are set up for a bucket."""

from __future__ import annotations

import ctypes
import os

from dualpath.store.s3.settings import S3Settings


def prepare_environment(settings: S3Settings) -> None:
    """What the AWS client below NIXL reads from the environment only, unless the user has set it.

    One attempt: its own default is ten retries with growing pauses, 25 s until a dead server is noticed. With keys at
    hand nobody needs to ask the instance's metadata service, which costs seconds where there is none.
    """
    os.environ.setdefault("AWS_RETRY_MODE", "standard")  # the default mode ignores the number of attempts
    os.environ.setdefault("AWS_MAX_ATTEMPTS", "1")
    if settings.credentials is not None:
        os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")


def backend_params(settings: S3Settings) -> dict[str, str]:
    """For NIXL's OBJ backend. Objects carry their own checksums, so the client adds none that S3 does not require."""
    params = {
        "bucket": settings.bucket,
        "region": settings.region,
        "use_virtual_addressing": str(settings.is_virtual_hosted).lower(),
        "req_checksum": "required",
        "resp_checksum": "required",
        "num_threads": str(settings.connections),  # each serves one request at a time
    }
    if settings.endpoint:
        params["endpoint_override"] = settings.endpoint
        params["scheme"] = settings.endpoint.partition(":")[0]
    if settings.ca_bundle:
        params["ca_bundle"] = settings.ca_bundle
    if settings.credentials is not None:
        params["access_key"] = settings.credentials.access_key
        params["secret_key"] = settings.credentials.secret_key
        if settings.credentials.session_token:
            params["session_token"] = settings.credentials.session_token
    return params


def keep_forever(*objects: object) -> None:
    """Never free these, not even when the interpreter ends: requests under way still use what they own."""
    for thing in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
