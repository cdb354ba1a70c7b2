package page

import (
	"bytes"
	"fmt"
	"html"
	"image"
	"image/color"
	"image/png"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	neturl "net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/auxserver"
	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/environment"
)

// Chromium's numbers of the scheme that the user prefers.
const dark, light = "0", "1"

// browser is Chromium with a page, in a process group of its own.
func browser(t *testing.T, address string, flags ...string) *exec.Cmd {
	t.Helper()
	profile, err := os.MkdirTemp("", "page") //nolint:usetesting // what outlives the browser for a moment may write there, and fail that one's removal
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(profile) })
	arguments := append([]string{
		"--headless", "--no-sandbox" /* as root */, "--disable-gpu", "--hide-scrollbars", "--user-data-dir=" + profile, "--window-size=1280,1000",
	}, flags...)
	command := exec.CommandContext(t.Context(), "chromium", append(arguments, address)...)
	command.WaitDelay = time.Second
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return command
}

// chromium shows a page and returns what it prints.
func chromium(t *testing.T, address string, flags ...string) string {
	t.Helper()
	command := browser(t, address, flags...)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	output, err := command.Output()
	if err != nil {
		t.Fatalf("chromium: %v: %s", err, stderr.String())
	}
	return string(output)
}

// dom is what the browser has made of a page.
func dom(t *testing.T, address string, flags ...string) string {
	t.Helper()
	return chromium(t, address, append(flags, "--dump-dom")...)
}

// picture is what one sees of a page.
func picture(t *testing.T, address, scheme string) (image.Image, []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "page.png")
	chromium(t, address, "--blink-settings=preferredColorScheme="+scheme, "--screenshot="+path)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	seen, err := png.Decode(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return seen, text
}

// rows is how many a table's body has.
func rows(t *testing.T, text, table string) int {
	t.Helper()
	_, text, found := strings.Cut(text, `<table id="`+table+`">`)
	if !found {
		t.Fatalf("no table %s in %s", table, text)
	}
	text, _, _ = strings.Cut(text, "</table>")
	_, text, _ = strings.Cut(text, "<tbody>")
	return strings.Count(text, "<tr")
}

func plain(text string) string {
	return html.UnescapeString(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(text, " "))
}

// TestPage is one server that is looked at in every way.
func TestPage(t *testing.T) {
	serve(t)
	t.Run("what is there", seesEverything)
	t.Run("light and dark", hasColours)
	t.Run("filters", filters)
	t.Run("follows", follows)
	t.Run("rebinding", refusesNames)
}

func seesEverything(t *testing.T) {
	start := time.Now()
	text := dom(t, url(""))
	took := time.Since(start)
	seen := plain(text)
	for _, want := range []string{
		replica, "✓ ready", "AccessDenied", "ledger-of-nobody", "search-crawler", "5005 of 5005 roles, the first 500", "10.1.0.12",
		"heard",
	} {
		if !strings.Contains(seen, want) {
			t.Errorf("no %q in %.3000s", want, seen)
		}
	}
	for name, want := range map[string]string{
		"a denied role":             `denied\s+1\s`,
		"one that STS answers not":  `unavailable\s+1\s`,
		"requests that wait":        `pod\s+3\s`,
		"what a namespace may have": `reports(\s+0){4}\s+1\s+token\s+listed`,
	} {
		if !regexp.MustCompile(want).MatchString(seen) {
			t.Errorf("no %s in %.3000s", name, seen)
		}
	}
	if n := rows(t, text, "roles"); n != 500 {
		t.Errorf("%d roles", n)
	}
	if leak := env.Leak(text); leak != "" {
		t.Errorf("a secret: %s", leak)
	}
	t.Logf("the browser had the page of %d roles within %v, its own start included", many, took.Round(time.Millisecond))
}

// hasColours: the ground is light or dark as the user prefers, the text the other, and the
// state of a denied role is red in both. The pictures are those of docs/.
func hasColours(t *testing.T) {
	for name, c := range map[string]struct {
		scheme string
		ground color.NRGBA
	}{
		"light": {light, color.NRGBA{255, 255, 255, 255}}, "dark": {dark, color.NRGBA{13, 17, 23, 255}},
	} {
		seen, text := picture(t, url("?follow=no"), c.scheme)
		counts := map[color.NRGBA]int{}
		bounds := seen.Bounds()
		red := 0
		for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
			for x := bounds.Min.X; x < bounds.Max.X; x++ {
				p := color.NRGBAModel.Convert(seen.At(x, y)).(color.NRGBA)
				counts[p]++
				if p.R > 180 && p.G < 100 && p.B < 100 {
					red++
				}
			}
		}
		all := bounds.Dx() * bounds.Dy()
		if share := counts[c.ground] * 100 / all; share < 60 || share > 99 {
			t.Errorf("%s: %d %% of the picture is ground", name, share)
		}
		if red < 20 {
			t.Errorf("%s: %d pixels are red", name, red)
		}
		if *update {
			if err := os.WriteFile(checkout.Path("docs", "images", "page-"+name+".png"), text, 0o600); err != nil {
				t.Error(err)
			}
		}
	}
}

func filters(t *testing.T) {
	for query, want := range map[string]int{
		"?q=worker-4999": 1, "?state=denied": 1, "?namespace=payments": 2, "?q=WORKER-49&state=valid": 100, "?q=no-such": 1,
	} {
		text := dom(t, url(query))
		if n := rows(t, text, "roles"); n != want {
			t.Errorf("%s: %d rows", query, n)
		}
	}
}

// follows: the browser asks again by itself, and not where that was turned off.
func follows(t *testing.T) {
	target := &neturl.URL{Scheme: "http", Host: auxserver.DebugAddress}
	var asked atomic.Int32
	between := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			asked.Add(1)
		}
		httputil.NewSingleHostReverseProxy(target).ServeHTTP(w, r)
	}))
	defer between.Close()
	// Time passes quickly for the browser. One that follows does not end by itself.
	const soon = "--virtual-time-budget=20000"
	dom(t, between.URL+"/?q=payments&follow=no", soon)
	if n := asked.Load(); n != 1 {
		t.Errorf("without following it asked %d times", n)
	}
	asked.Store(0)
	command := browser(t, between.URL+"/?q=payments", soon, "--dump-dom")
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	environment.Eventually(t, within, func() error {
		if n := asked.Load(); n < 3 {
			return fmt.Errorf("asked %d times", n)
		}
		return nil
	})
	_ = syscall.Kill(-command.Process.Pid, syscall.SIGKILL)
	_ = command.Wait() // killed
}

// refusesNames: a name that leads to loopback shows nothing.
func refusesNames(t *testing.T) {
	_, port, _ := strings.Cut(auxserver.DebugAddress, ":")
	for _, path := range []string{"/", "/debug/roles", "/debug/pods"} {
		text := dom(t, "http://rebound.example:"+port+path, "--host-resolver-rules=MAP rebound.example 127.0.0.1")
		if strings.Contains(text, "payments") || !strings.Contains(text, "the Host header must be localhost") {
			t.Errorf("%s: %.2000s", path, text)
		}
	}
}
