package issuer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/internal/kube"
)

// Operator is what somebody does to an issuer from a command line.
type Operator struct {
	URL     string
	Secrets kube.Secrets
	// Say is for what was done and what there is to do, Documents for the documents.
	Say, Documents io.Writer

	// client and now are the tests' to change.
	client *http.Client
	now    func() time.Time
}

// NewOperator returns one for the Secret among secrets.
func NewOperator(issuerURL string, secrets kube.Secrets, say, documents io.Writer) *Operator {
	return &Operator{URL: issuerURL, Secrets: secrets, Say: say, Documents: documents, client: reader, now: time.Now}
}

// Print writes the two documents, into files below the folder out, or one after the other where
// that is empty. Where there is no Secret it makes the first, as a server would.
func (o *Operator) Print(ctx context.Context, out string) error {
	secret, err := o.Secrets.Get(ctx, SecretName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if secret, err = newSecret(); err != nil {
			return err
		}
		if secret, err = o.Secrets.Create(ctx, secret, metav1.CreateOptions{}); err == nil {
			_, _ = fmt.Fprintf(o.Say, "made the first key, in Secret %s\n", SecretName)
		}
	}
	if err != nil {
		return fmt.Errorf("the issuer's key: %w", err)
	}
	keys, err := parse(secret)
	if err != nil {
		return err
	}
	all, err := documents(o.URL, keys, o.now())
	if err != nil {
		return err
	}
	for _, d := range all {
		if out == "" {
			_, err = o.Documents.Write(d.Content)
		} else {
			err = writeFile(filepath.Join(out, filepath.FromSlash(d.Path)), d.Content)
		}
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(o.Say, "%s/%s\n", o.URL, d.Path)
	}
	_, _ = fmt.Fprintf(o.Say, "Serve these two, as application/json, readable for everybody. Tokens are signed with key %s.\n", keys.current.id)
	return nil
}

// writeFile leaves a file that is the same already, with its time.
func writeFile(path string, content []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // it is published
		return err
	}
	return os.WriteFile(path, content, 0o644) //nolint:gosec // as above
}

// Rotation is how a key is changed.
type Rotation struct {
	// After is how long the next key has to have been published before it signs.
	After time.Duration
	// Published: whoever runs this vouches that the URL serves what was printed last; it is
	// not read.
	Published bool
	// AtOnce: the current key is no secret any more. A new one takes its place, published or not.
	AtOnce bool
}

// Rotate takes the next step of a rotation, if it is time for that, and says what the one after
// it is. To repeat it too early changes nothing; its error then says what it waits for.
func (o *Operator) Rotate(ctx context.Context, r Rotation) error {
	secret, err := o.Secrets.Get(ctx, SecretName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("there is no Secret %s, so nothing to rotate: server issuer makes the first key", SecretName)
	}
	if err != nil {
		return fmt.Errorf("the issuer's key: %w", err)
	}
	keys, err := parse(secret)
	switch {
	case r.AtOnce:
		return o.replace(ctx, secret)
	case err != nil:
		return err
	case keys.next == nil:
		return o.makeNext(ctx, secret, keys)
	}
	return o.promote(ctx, secret, keys, r)
}

// replace is the emergency.
func (o *Operator) replace(ctx context.Context, secret *corev1.Secret) error {
	current, err := newKey()
	if err != nil {
		return err
	}
	secret.Data = map[string][]byte{CurrentKey: current}
	annotate(secret, AnnotationChanged, o.now())
	delete(secret.Annotations, AnnotationPublished)
	if err := o.update(ctx, secret); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(o.Say, "A new key signs now, and the old ones are gone.\n"+
		"Until AWS reads the new one no session can be started or refreshed; pods go on with what they have, for 20 minutes at least where sessions last an hour.\n"+
		"1. At once: server issuer --issuer %s --out DIR, and put both files in the place of the published ones. That takes the old keys away.\n"+
		"2. End the sessions that others may have started with the old key: docs/operations.md, \"Revoking sessions\".\n", o.URL)
	return nil
}

// makeNext begins a rotation.
func (o *Operator) makeNext(ctx context.Context, secret *corev1.Secret, keys *set) error {
	if end := keys.changed.Add(keepPrevious); keys.previous != nil && o.now().Before(end) {
		return fmt.Errorf("the last rotation was a moment ago, tokens of the key before may still be on their way: again after %s", end.UTC().Format(time.RFC3339))
	}
	next, err := newKey()
	if err != nil {
		return err
	}
	secret.Data[NextKey] = next
	delete(secret.Data, PreviousKey)
	delete(secret.Annotations, AnnotationPublished)
	if err := o.update(ctx, secret); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(o.Say, "Step 1 of 3: made the next key. It signs nothing yet.\n"+
		"Now publish it: server issuer --issuer %s --out DIR, and put both files in the place of the published ones. Then run server issuer rotate again.\n", o.URL)
	return nil
}

// promote lets the next key sign once it was published for long enough.
func (o *Operator) promote(ctx context.Context, secret *corev1.Secret, keys *set, r Rotation) error {
	if !r.Published {
		ids, err := served(ctx, o.client, o.URL)
		switch {
		case err != nil:
			return fmt.Errorf("whether the next key is published: %w; --published says so where the URL cannot be read from here", err)
		case !ids[keys.next.id] || !ids[keys.current.id]:
			return fmt.Errorf("%s does not serve both keys, %s, which signs, and the next one, %s: publish what server issuer --out DIR writes, then run this again", o.URL, keys.current.id, keys.next.id)
		}
	}
	now := o.now()
	if keys.published.IsZero() && r.After > 0 {
		annotate(secret, AnnotationPublished, now)
		if err := o.update(ctx, secret); err != nil {
			return err
		}
		_, _ = fmt.Fprintf(o.Say, "Step 2 of 3: the next key is published. It may sign once everybody has read it.\nRun server issuer rotate again after %s.\n", now.Add(r.After).UTC().Format(time.RFC3339))
		return nil
	}
	if may := keys.published.Add(r.After); now.Before(may) {
		return fmt.Errorf("the next key is published since %s and may sign after %s: run this again then", keys.published.UTC().Format(time.RFC3339), may.UTC().Format(time.RFC3339))
	}
	previous, err := keys.current.publicPEM()
	if err != nil {
		return err
	}
	secret.Data = map[string][]byte{CurrentKey: secret.Data[NextKey], PreviousKey: previous}
	delete(secret.Annotations, AnnotationPublished)
	annotate(secret, AnnotationChanged, now)
	if err := o.update(ctx, secret); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(o.Say, "Step 3 of 3: the new key signs: each server logs it, with key_id %s.\n"+
		"To take the old key out of what is published: after %s, server issuer --issuer %s --out DIR, and publish both files.\n", keys.next.id, now.Add(keepPrevious).UTC().Format(time.RFC3339), o.URL)
	return nil
}

func annotate(secret *corev1.Secret, name string, at time.Time) {
	if secret.Annotations == nil {
		secret.Annotations = map[string]string{}
	}
	secret.Annotations[name] = at.UTC().Format(time.RFC3339)
}

// update changes the Secret unless somebody else has meanwhile.
func (o *Operator) update(ctx context.Context, secret *corev1.Secret) error {
	_, err := o.Secrets.Update(ctx, secret, metav1.UpdateOptions{})
	if apierrors.IsConflict(err) {
		return fmt.Errorf("somebody else has changed Secret %s in this moment: run this again", SecretName)
	}
	if err != nil {
		return fmt.Errorf("change Secret %s: %w", SecretName, err)
	}
	return nil
}
