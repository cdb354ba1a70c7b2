package environment

import (
	"os"
	"strconv"
	"time"
)

// SlowdownEnv names the environment variable that says how many times slower than a machine
// of one's own the one is that the tests run on. Only test/kernels sets it, in a machine that
// it emulates. Build takes there what was built before, without the race detector, and AtMost
// allows for it.
const SlowdownEnv = "IAM4KUBE_TEST_SLOWDOWN"

// slowdown is 1 on all machines but emulated ones.
func slowdown() int {
	if times, err := strconv.Atoi(os.Getenv(SlowdownEnv)); err == nil {
		return times
	}
	return 1
}

// AtMost is a bound of what a program may take by itself.
func AtMost(bound time.Duration) time.Duration { return bound * time.Duration(slowdown()) }
