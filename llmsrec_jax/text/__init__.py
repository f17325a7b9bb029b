"""Text encoders: BERT, DistilBERT and RoBERTa shapes (MiniLM and SBERT are such); texts in, vectors out."""
