"""A detector over a corpus of any size: blocks scanned by any number of workers, one exact result."""

from sa_plugin._face import face_room
from sa_plugin.scanning.block import ScanJob, scan_block
from sa_plugin.scanning.documents import DocumentSums
from sa_plugin.scanning.merge import merge
from sa_plugin.scanning.run import TooManyBadError, scan
from sa_plugin.scanning.summary import Scan, summary
from sa_plugin.scanning.wanted import Wanted
from sa_plugin.scanning.windows import Windows, pieces_of

__all__ = [
    "DocumentSums",
    "Scan",
    "ScanJob",
    "TooManyBadError",
    "Wanted",
    "Windows",
    "merge",
    "pieces_of",
    "scan",
    "scan_block",
    "summary",
]

face_room(globals())
