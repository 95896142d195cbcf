"""What a sample is: networks, codecs, conditioning, data and metrics of each modality."""
