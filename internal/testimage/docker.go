package testimage

import (
	"encoding/json"
	"fmt"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// dockerImage is an entry of manifest.json in a docker archive.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// DockerFiles gives the files of a docker archive as docker wrote them before
// it wrote OCI layouts.
func DockerFiles(compression string, images ...Image) (map[string][]byte, error) {
	files := map[string][]byte{}
	list := []dockerImage{}
	for _, image := range images {
		config, err := image.ConfigJSON()
		if err != nil {
			return nil, err
		}
		entry := dockerImage{Config: digest.FromBytes(config).Encoded() + ".json"}
		files[entry.Config] = config
		for _, layer := range image.Layers {
			data, _, err := compress(layer, compression)
			if err != nil {
				return nil, err
			}
			dir := digest.FromBytes(layer).Encoded()
			entry.Layers = append(entry.Layers, dir+"/layer.tar")
			files[dir+"/layer.tar"] = data
			files[dir+"/VERSION"] = []byte("1.0")
			files[dir+"/json"] = []byte(`{"id":"` + dir + `"}`)
		}
		if image.Name != "" {
			named, err := reference.ParseDockerRef(image.Name)
			if err != nil {
				return nil, fmt.Errorf("image name %q: %w", image.Name, err)
			}
			entry.RepoTags = []string{reference.FamiliarString(named)}
		}
		list = append(list, entry)
	}
	manifest, err := json.Marshal(list)
	if err != nil {
		return nil, err
	}
	files["manifest.json"] = manifest
	files["repositories"] = []byte("{}")
	return files, nil
}
