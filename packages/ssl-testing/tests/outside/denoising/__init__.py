"""A denoising autoencoder (Vincent et al. 2008), as a package of its own."""
