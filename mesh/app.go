package mesh

import (
	"fmt"
	"strconv"
)

// What an app's bare name answers to those who are not of the app. A number
// answers that many of the nearest.
const (
	AnswerNear = "near" // the near set; the default
	AnswerAll  = "all"
)

// TTLs of apps and records, in seconds.
const (
	DefaultTTL = 5
	MaxTTL     = 3600
)

// maxAnswer bounds a number as an answer: more machines than that no answer holds.
const maxAnswer = 10000

// Validate reports settings that an app cannot have.
func (a App) Validate() error {
	if err := CheckName("app", a.Name); err != nil {
		return err
	}
	switch n, err := strconv.Atoi(a.Answer); {
	case a.Answer == "" || a.Answer == AnswerNear || a.Answer == AnswerAll:
	case err != nil || n < 1 || n > maxAnswer || strconv.Itoa(n) != a.Answer:
		return fmt.Errorf("app %s: answer %q: want near, all, or how many of the nearest: 1 to %d", a.Name, a.Answer, maxAnswer)
	}
	return checkTTL("app "+a.Name, a.TTL)
}

func checkTTL(what string, ttl int) error {
	if ttl < 0 || ttl > MaxTTL {
		return fmt.Errorf("%s: a TTL of %d s: want 1 to %d", what, ttl, MaxTTL)
	}
	return nil
}
