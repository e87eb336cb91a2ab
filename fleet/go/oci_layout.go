// Reads an OCI layout as go-containerregistry does (what ko and crane read images with), down to the tar
// of every layer: digests, sizes, media types and what the config says of the layers must agree. Prints what a
// container runtime would be told, and the files, as JSON.
package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

type file struct {
	Path string `json:"path"`
	Mode int64  `json:"mode"`
	User int    `json:"user"`
	Time int64  `json:"time"`
}

type image struct {
	Digest     string            `json:"digest"`
	Platform   string            `json:"platform"`
	User       string            `json:"user"`
	Entrypoint []string          `json:"entrypoint"`
	Labels     map[string]string `json:"labels"`
	Files      []file            `json:"files"`
}

func main() {
	said, err := read(os.Args[1])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(said)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%v\n", err)
		os.Exit(1)
	}
}

func read(folder string) (*image, error) {
	index, err := layout.ImageIndexFromPath(folder)
	if err != nil {
		return nil, err
	}
	// Without the layers, which it takes for gzip; `listed` reads those.
	if err := validate.Index(index, validate.Fast); err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(manifest.Manifests) != 1 {
		return nil, fmt.Errorf("%d images instead of one", len(manifest.Manifests))
	}
	digest := manifest.Manifests[0].Digest
	one, err := index.Image(digest)
	if err != nil {
		return nil, err
	}
	config, err := one.ConfigFile()
	if err != nil {
		return nil, err
	}
	files, err := listed(one, config.RootFS.DiffIDs)
	if err != nil {
		return nil, err
	}
	return &image{
		Digest:     digest.String(),
		Platform:   config.Platform().String(),
		User:       config.Config.User,
		Entrypoint: config.Config.Entrypoint,
		Labels:     config.Config.Labels,
		Files:      files,
	}, nil
}

// What is in the layers, in their order. Each must be the octets that manifest and config name.
func listed(one v1.Image, unpacked []v1.Hash) ([]file, error) {
	layers, err := one.Layers()
	if err != nil {
		return nil, err
	}
	if len(layers) != len(unpacked) {
		return nil, fmt.Errorf("%d layers, and %d in the config", len(layers), len(unpacked))
	}
	var files []file
	for at, layer := range layers {
		named, err := layer.Digest()
		if err != nil {
			return nil, err
		}
		if err := is(named, layer.Compressed); err != nil {
			return nil, err
		}
		if err := is(unpacked[at], layer.Uncompressed); err != nil {
			return nil, err
		}
		reader, err := layer.Uncompressed()
		if err != nil {
			return nil, err
		}
		defer reader.Close()
		entries := tar.NewReader(reader)
		for {
			entry, err := entries.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, err
			}
			files = append(files, file{entry.Name, entry.Mode, entry.Uid, entry.ModTime.Unix()})
		}
	}
	return files, nil
}

// Whether these are the octets of a digest.
func is(digest v1.Hash, open func() (io.ReadCloser, error)) error {
	reader, err := open()
	if err != nil {
		return err
	}
	defer reader.Close()
	found, _, err := v1.SHA256(reader)
	if err == nil && found != digest {
		err = fmt.Errorf("a layer is %s, and named %s", found, digest)
	}
	return err
}
