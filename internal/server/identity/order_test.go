package identity

import (
	"iter"
	"slices"
)

// permutations yields every order of n things.
func permutations(n int) iter.Seq[[]int] {
	return func(yield func([]int) bool) {
		var grow func(order []int) bool
		grow = func(order []int) bool {
			if len(order) == n {
				return yield(slices.Clone(order))
			}
			for i := range n {
				if !slices.Contains(order, i) && !grow(append(order, i)) {
					return false
				}
			}
			return true
		}
		grow(nil)
	}
}

// interleavings yields every way to merge a things and b others without changing the
// order among either; true stands for one of the a.
func interleavings(a, b int) iter.Seq[[]bool] {
	return func(yield func([]bool) bool) {
		var grow func(order []bool, a, b int) bool
		grow = func(order []bool, a, b int) bool {
			if a+b == 0 {
				return yield(slices.Clone(order))
			}
			return (a == 0 || grow(append(order, true), a-1, b)) && (b == 0 || grow(append(order, false), a, b-1))
		}
		grow(nil, a, b)
	}
}
