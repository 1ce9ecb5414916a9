"""Music genre classification, from a folder of MP3s to a tracked model.

>>> import mgc  # loads nothing heavy: the steps are modules, import the one you need

See ``docs/architecture.md`` for the one picture, ``mgc --help`` for the commands.
"""

__version__ = "0.1.0"
