// Reads configurations of kind clusters as kind does, strictly, with its defaults and its validation, and
// prints of each, as a line of JSON, what it came to. The first that kind would refuse ends it.
//
// What kind reads them with is internal to its module: this program's own module has a name within it.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"sigs.k8s.io/kind/pkg/internal/apis/config/encoding"
)

type node struct {
	Role   string            `json:"role"`
	Labels map[string]string `json:"labels"`
}

type read struct {
	Name     string `json:"name"`
	Pods     string `json:"pods"`
	Services string `json:"services"`
	Proxy    string `json:"proxy"`
	Nodes    []node `json:"nodes"`
}

func main() {
	for _, path := range os.Args[1:] {
		config, err := encoding.Load(path)
		if err == nil {
			if config.Name == "" {
				// As by --name, before it is validated.
				config.Name = "given"
			}
			err = config.Validate()
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			os.Exit(1)
		}
		networking := config.Networking
		said := read{
			Name:     config.Name,
			Pods:     networking.PodSubnet,
			Services: networking.ServiceSubnet,
			Proxy:    string(networking.KubeProxyMode),
		}
		for _, each := range config.Nodes {
			said.Nodes = append(said.Nodes, node{Role: string(each.Role), Labels: each.Labels})
		}
		if err := json.NewEncoder(os.Stdout).Encode(said); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}
