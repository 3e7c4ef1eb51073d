package testimage

import (
	"bytes"
	"os"
	"testing"

	"github.com/berthd/berth/internal/needed"
)

func TestReproducible(t *testing.T) {
	if _, err := os.Stat(BusyboxPath); err != nil {
		needed.Missing(t, err)
	}
	for _, compression := range []string{None, Gzip, Zstd} {
		var made [2]bytes.Buffer
		for i := range made {
			image, err := Busybox("demo", BusyboxPath)
			if err != nil {
				t.Fatal(err)
			}
			layout, err := NewLayout(compression, image)
			if err != nil {
				t.Fatal(err)
			}
			if err := layout.WriteTar(&made[i]); err != nil {
				t.Fatal(err)
			}
			files, err := DockerFiles(compression, image)
			if err != nil {
				t.Fatal(err)
			}
			if err := WriteFiles(&made[i], files); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(made[0].Bytes(), made[1].Bytes()) || made[0].Len() < 1<<20 {
			t.Errorf("%s: %d and %d bytes", compression, made[0].Len(), made[1].Len())
		}
	}
}

func TestBusyboxIsMissing(t *testing.T) {
	if _, err := Busybox("demo", "/none"); err == nil || !bytes.Contains([]byte(err.Error()), []byte("busybox-static")) {
		t.Error(err)
	}
}
