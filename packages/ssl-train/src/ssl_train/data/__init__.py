"""Where samples come from and how they become batches.

`images` decodes one file. `sources` finds samples in folders, CSV files and arrays, `libraries` in
what torchvision and `datasets` know by name. `scenes` renders the built-in set, `photos` crops
photographs that are on the disk. `views` holds the augmentations, `loader` makes the batches.
"""
