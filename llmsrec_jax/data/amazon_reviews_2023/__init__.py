"""Amazon Reviews 2023 (the paper's four datasets and every other category) as a TensorFlow Datasets builder without TensorFlow.

categories names them, download and files bring the published files here, parse turns them into arrays, the builder writes
one record per user and one per item, prepared reads them back. The folder and the builder's file carry the names that
TensorFlow Datasets looks for.
"""
