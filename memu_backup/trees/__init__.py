"""A backup as a tree: files as they are, so that cp, rsync and a file manager get everything back (docs/format.md).

What has not changed since the backup before is a further name of the same file, never one of a file that lives. What a
filesystem may not keep (owners, attributes, what a file was known by) stands in an index beside the tree and not in it,
so that ``rsync -a TREE/ /srv/`` brings back the household's files and nothing else.
"""
