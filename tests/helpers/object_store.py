"""A real S3 server on loopback."""

from __future__ import annotations

import logging
import os
from contextlib import suppress

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "music"


class Store:
    """An S3 server on loopback, and an eye on it that is not the one under test."""

    def __init__(self, port=0):
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
        self.server.start()
        self.endpoint = "{}:{}".format(*self.server.get_host_and_port())
        keys = {"aws_access_key_id": "KEY", "aws_secret_access_key": "SECRET", "region_name": "us-east-1"}
        self.s3 = boto3.client("s3", endpoint_url=f"http://{self.endpoint}", **keys)
        self.s3.create_bucket(Bucket=BUCKET)

    def uri(self, path, *, bucket=BUCKET):
        """A path's URI with all that is needed to reach it, so that Ray's workers need no environment."""
        return f"s3://KEY:SECRET@{bucket}/{path}?endpoint_override={self.endpoint}&scheme=http&region=us-east-1"

    @property
    def environment(self):
        """What a user would set, so that ``s3://bucket/path`` is enough."""
        keys = {"AWS_ACCESS_KEY_ID": "KEY", "AWS_SECRET_ACCESS_KEY": "SECRET", "AWS_DEFAULT_REGION": "us-east-1"}
        return os.environ | keys | {"AWS_ENDPOINT_URL": f"http://{self.endpoint}"}

    def upload(self, folder, prefix, *, bucket=BUCKET):
        for path, data in contents(folder).items():
            self.s3.put_object(Bucket=bucket, Key=f"{prefix}/{path}", Body=data)

    def contents(self, prefix, *, bucket=BUCKET):
        """Bytes by path of all objects below a prefix, but for those that stand for a folder, and left locks."""
        found = self.s3.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/").get("Contents", [])
        assert len(found) < 1000
        keys = (entry["Key"] for entry in found if not entry["Key"].endswith(("/", "/.lock")))
        there = {}
        for key in keys:  # a folder's stand-in is of pyarrow, where it has deleted a file
            with suppress(self.s3.exceptions.NoSuchKey):  # it has gone meanwhile
                there[key.removeprefix(f"{prefix}/")] = self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        return there

    def times(self, prefix):
        found = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/")["Contents"]
        return {entry["Key"]: entry["LastModified"] for entry in found if not entry["Key"].endswith("/")}


def contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
