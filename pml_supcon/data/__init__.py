"""Images from folders, Parquet files, torchvision and the Hugging Face hub, and their splits."""
