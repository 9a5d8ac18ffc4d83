"""A whole data set in parallel processes, here or on a cluster, that a kill does not undo.

shard.py       some inputs: what a worker is told, what it gives, and the file of it
folder.py      the results folder: which evaluation it belongs to, which shards are whole
pools.py       who runs the shards: processes, Dask, Ray
evaluation.py  all together
pictures.py    histograms as a picture
"""
