"""The bytes on disk, without any policy: gzip members, tar headers, the index, writing and reading an archive.

docs/format.md tells the same for strangers; the two change together.
"""
