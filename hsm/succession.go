package hsm

import "context"

// Rewrap is Member.Rewrap, on a member that holds both generations.
func (d *Domain) Rewrap(ctx context.Context, ekt EKT, to uint32) (moved EKT, err error) {
	err = d.do(ctx, call{op: callRewrap, ekt: ekt, number: to}, func(r *reply) error { moved = r.ekt; return nil })
	return moved, err
}

// SetActive is Member.SetActive, on every member.
func (d *Domain) SetActive(ctx context.Context, generation uint32) error {
	return d.do(ctx, call{op: callSetActive, number: generation}, nil)
}

// Generations is Member.Generations.
func (d *Domain) Generations(ctx context.Context) (all []Generation, err error) {
	err = d.do(ctx, call{op: callGenerations}, func(r *reply) error { return r.read(&all) })
	return all, err
}
