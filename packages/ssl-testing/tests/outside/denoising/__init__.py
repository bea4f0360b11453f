"""A denoising autoencoder (Vincent et al. 2008), as a package that does not belong to this repository."""
