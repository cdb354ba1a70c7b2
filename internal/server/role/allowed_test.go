package role

import (
	"strings"
	"testing"
)

func TestAllowed(t *testing.T) {
	const orders = "arn:aws:iam::123456789012:role/shop/orders"
	for _, tc := range []struct {
		annotation, arn string
		want            bool
	}{
		{"", orders, false},
		{orders, orders, true},
		{orders, orders + "2", false},
		{orders, "arn:aws:iam::123456789012:role/shop/order", false},
		{"arn:aws:iam::123456789012:role/shop/*", orders, true},
		{"arn:aws:iam::123456789012:role/*", orders, true},
		{"arn:aws:iam::123456789012:*", orders, true},
		{"arn:aws:iam::123456789012:role/*/orders", orders, true},
		{"arn:aws:iam::123456789012:role/s*p/o*r*s", orders, true},
		{"arn:aws:iam::123456789012:role/s*p/o*r*t", orders, false},
		{"arn:aws:iam::123456789012:role/*orders*orders", orders, false},
		{"arn:aws:iam::123456789012:role/shop", orders, false},
		{"arn:aws:iam::123456789012:role/SHOP/*", orders, false},
		{"arn:aws:iam::123456789012:role/shop/order?", orders, false},
		{"arn:aws:iam::*:role/shop/*", orders, true},
		{"arn:*:iam::*:role/shop/*", orders, true},
		{"arn:aws:*::123456789012:role/shop/*", orders, true},
		{"*", orders, true},
		// A * that could reach over a boundary is none.
		{"arn:aws:iam::1234567890*:role/shop/*", orders, false},
		{"arn:aws*:iam::123456789012:role/shop/*", orders, false},
		{"arn:aws:i*::123456789012:role/shop/*", orders, false},
		{"arn:*", orders, false},
		{"arn:aws:iam::*", orders, false},
		{"*:role/shop/orders", orders, false},
		{"arn:aws:iam::123456789012:", orders, false},
		{"orders", orders, false},
		{"arn:aws:iam::210987654321:role/*", orders, false},
		{"arn:aws-cn:iam::123456789012:role/*", orders, false},
		// Lists.
		{"arn:aws:iam::123456789012:role/a,arn:aws:iam::123456789012:role/shop/*", orders, true},
		{" arn:aws:iam::123456789012:role/a \n\tarn:aws:iam::123456789012:role/shop/* ,, ", orders, true},
		{"garbage, " + orders, orders, true},
		{"* orders", "arn:aws:iam::1:role/x", true},
		{orders + strings.Repeat(" ", maxAllowed), orders, false},
		{"**", orders, false},
	} {
		if got := ParseAllowed(tc.annotation).Allows(tc.arn); got != tc.want {
			t.Errorf("%.100q allows %s: %t, want %t", tc.annotation, tc.arn, got, tc.want)
		}
	}
}

func TestAllowedSaysWhatIsWrong(t *testing.T) {
	for annotation, says := range map[string]string{
		"arn:aws:iam::1:role/a, team-*, other": `"team-*"`, strings.Repeat("x", maxAllowed+1): "16384 bytes", "arn:aws:iam::1:role/a": "", "": "",
	} {
		if wrong := ParseAllowed(annotation).Wrong(); !strings.Contains(wrong, says) || (wrong == "") != (says == "") || len(wrong) > 300 {
			t.Errorf("%.40q: %q", annotation, wrong)
		}
	}
}
