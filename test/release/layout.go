package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// layout is the folder of an OCI image layout with one index.
type layout string

// descriptor is what of an OCI content descriptor is used here.
type descriptor struct {
	Digest   string `json:"digest"`
	Platform struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
	} `json:"platform"`
}

// index is the one that the layout names.
func (l layout) index() (descriptor, error) {
	var index struct {
		Manifests []descriptor `json:"manifests"`
	}
	text, err := os.ReadFile(filepath.Join(string(l), "index.json"))
	if err == nil {
		err = json.Unmarshal(text, &index)
	}
	if err == nil && len(index.Manifests) != 1 {
		err = fmt.Errorf("%d entries, want one", len(index.Manifests))
	}
	if err != nil {
		return descriptor{}, fmt.Errorf("the index of %s: %w", l, err)
	}
	return index.Manifests[0], nil
}

// images are those of the index, one for each platform.
func (l layout) images() ([]descriptor, error) {
	index, err := l.index()
	if err != nil {
		return nil, err
	}
	var list struct {
		Manifests []descriptor `json:"manifests"`
	}
	err = l.read(index.Digest, &list)
	return list.Manifests, err
}

func (l layout) blob(digest string) ([]byte, error) {
	algorithm, hash, _ := strings.Cut(digest, ":")
	return os.ReadFile(filepath.Join(string(l), "blobs", algorithm, hash))
}

func (l layout) read(digest string, into any) error {
	text, err := l.blob(digest)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

// program is the file of this name in an image's layers.
func (l layout) program(image descriptor, name string) (*tar.Header, []byte, error) {
	var manifest struct {
		Layers []descriptor `json:"layers"`
	}
	if err := l.read(image.Digest, &manifest); err != nil {
		return nil, nil, err
	}
	for _, layer := range manifest.Layers {
		content, err := l.blob(layer.Digest)
		if err != nil {
			return nil, nil, err
		}
		unpacked, err := gzip.NewReader(bytes.NewReader(content))
		if err != nil {
			return nil, nil, err
		}
		for files := tar.NewReader(unpacked); ; {
			header, err := files.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, nil, err
			}
			if header.Name == name {
				content, err := io.ReadAll(files)
				return header, content, err
			}
		}
	}
	return nil, nil, fmt.Errorf("no file %s in the image of %s for %s", name, l, image.Platform.Architecture)
}
