"""3D objects: voxels, sparse latents, meshes."""
