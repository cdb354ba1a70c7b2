package podevents

// queue is events that wait for their write. Namespaces take turns, and share the places:
// when all are taken, one that has less than its share gets a place of the one that has
// most.
type queue struct {
	length int
	// namespaces has the events of each namespace in their order, none of them empty.
	namespaces map[string][]event
	// turns are the namespaces, whose turn is next first.
	turns []string
}

// push adds an event and reports whether none was dropped for it, itself included.
func (q *queue) push(e event) bool {
	namespace := e.about.Namespace
	own, waits := q.namespaces[namespace]
	sharing := len(q.turns)
	if !waits {
		sharing++
	}
	full := q.length == queueLength
	switch {
	case full && len(own) >= queueLength/sharing:
		return false
	case full:
		q.drop()
	}
	if !waits {
		q.turns = append(q.turns, namespace)
	}
	q.namespaces[namespace] = append(own, e)
	q.length++
	return !full
}

// drop drops the latest event of the namespace that has most, which has to have several.
func (q *queue) drop() {
	most := q.turns[0]
	for _, namespace := range q.turns {
		if len(q.namespaces[namespace]) > len(q.namespaces[most]) {
			most = namespace
		}
	}
	last := len(q.namespaces[most]) - 1
	q.namespaces[most][last] = event{}
	q.namespaces[most] = q.namespaces[most][:last]
	q.length--
}

// pop takes the event whose turn it is.
func (q *queue) pop() (event, bool) {
	if q.length == 0 {
		return event{}, false
	}
	namespace := q.turns[0]
	q.turns = q.turns[1:]
	events := q.namespaces[namespace]
	if len(events) == 1 {
		delete(q.namespaces, namespace)
	} else {
		q.namespaces[namespace] = events[1:]
		q.turns = append(q.turns, namespace)
	}
	q.length--
	return events[0], true
}
