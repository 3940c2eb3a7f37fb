"""The layouts of skerch 0.x and 1.x on disk; the pipeline uses neither.

0.x keeps a sketch (N, m) as one file a column, `<prefix>_%010d.h5`, made before anything is
measured; 1.x keeps its transpose as one file a range of rows, `<prefix>_<beg>-<end>.h5`. A file has
`data` and, for each vector, one of the `flags`: text that says how far its measurement is. The
virtual `<prefix>_ALL.h5` stands for the whole. Where a file is missing or the process is out of
file handles, HDF5 fills such a view without a word, so here it only tells which file holds what.
"""
