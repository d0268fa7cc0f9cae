# SPDX-License-Identifier: Apache-2.0
"""`make demo`: vmsnap takes a snapshot of a busy application, and the copies are proved.

`__main__` tells the story, `stage` sets it up, `ledger` is the application, `copy` the snapshot.
Nothing outside the demo's own two loop filesystems is ever frozen.
"""
