package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/weftmesh/weft/e2e/churn"
	"github.com/weftmesh/weft/e2e/lab"
)

// inPlane is a command in the data plane's namespace.
func inPlane(ctx context.Context, h *lab.Host, command ...string) (string, error) {
	return h.Run(ctx, "ip", append([]string{"netns", "exec", "weft"}, command...)...)
}

// do does one operation, and notes in the state what is to be from now on. What only
// begins here is waited for at the next quiet moment.
func (c *churned) do(ctx context.Context, op churn.Operation) error {
	c.note("%s", op)
	before := c.state
	c.mu.Lock()
	c.state = before.After(op)
	if op.Kind == churn.CreateGrant || op.Kind == churn.RemoveGrant {
		c.changing = append(c.changing, op.Grant)
	}
	if m := before.Machines[op.On]; op.Kind == churn.MoveMachine || op.Kind == churn.StartMachine {
		c.was[op.On] = m.Host
	}
	if op.Kind == churn.CreateOrg {
		c.app(op.On, c.state.Machines[op.On+"/only"].App)
	}
	c.mu.Unlock()
	if err := c.perform(ctx, op); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

func (c *churned) perform(ctx context.Context, op churn.Operation) error {
	sw := c.w.Lab().Switch()
	switch op.Kind {
	case churn.StopMachine, churn.KillMachine:
		var errs []error
		for _, l := range c.living(op.On) {
			if op.Kind == churn.KillMachine {
				errs = append(errs, l.process.Kill())
			} else {
				errs = append(errs, l.process.Stop())
			}
		}
		return errors.Join(errs...)
	case churn.StartMachine, churn.MoveMachine:
		return c.launch(op.On, op.To, op.Kind == churn.MoveMachine)
	case churn.KillAgent:
		return c.w.Hosts[op.On].Agent.Kill()
	case churn.StopAgent:
		return c.w.Hosts[op.On].Agent.Stop()
	case churn.StartAgent:
		return c.w.StartAgent(c.w.Hosts[op.On])
	case churn.KillDevice:
		return c.killDevice(op.On)
	case churn.RebootHost:
		return c.w.Hosts[op.On].Reboot()
	case churn.CutLink:
		return sw.Cut(op.On, op.To)
	case churn.CutOneWay:
		return sw.CutOneWay(op.On, op.To)
	case churn.HarmLink:
		p := lab.Path{Loss: op.Loss, Reorder: op.Reorder, Duplicate: op.Duplicate, Delay: time.Duration(op.DelayMS) * time.Millisecond}
		return errors.Join(sw.SetPath(op.On, op.To, p), sw.SetPath(op.To, op.On, p))
	case churn.HealLinks:
		return c.heal()
	case churn.LaptopLeaves, churn.LaptopJoins:
		return c.laptop(ctx, op)
	case churn.RouterForgets:
		return c.routers[op.On].Forget()
	case churn.DriftPeers, churn.DriftRoutes, churn.DriftFirewall:
		return c.drift(ctx, op)
	}
	return c.request(ctx, op)
}

// heal makes all paths between hosts good.
func (c *churned) heal() error {
	var errs []error
	for a := range c.w.Hosts {
		for b := range c.w.Hosts {
			if a != b {
				errs = append(errs, c.w.Lab().Switch().SetPath(a, b, lab.Path{}))
			}
		}
	}
	return errors.Join(errs...)
}

// killDevice ends what holds a host's tunnels, where that is a process.
func (c *churned) killDevice(host string) error {
	pids, err := c.w.Hosts[host].Daemons()
	for _, pid := range pids {
		if _, killed := c.w.Hosts[host].Run(c.t.Context(), "kill", "-9", fmt.Sprint(pid)); killed != nil {
			err = errors.Join(err, killed)
		}
	}
	return err
}

func (c *churned) laptop(ctx context.Context, op churn.Operation) error {
	if op.Kind == churn.LaptopJoins {
		return c.revive(ctx)
	}
	for _, l := range c.lives {
		if l.key == op.On && l.up != nil && !l.up.Exited() {
			if c.r.IntN(2) == 0 {
				return l.up.Kill()
			}
			return l.up.Stop()
		}
	}
	return nil
}

// request is what an operator types.
func (c *churned) request(ctx context.Context, op churn.Operation) error {
	var err error
	switch op.Kind {
	case churn.KillController:
		for _, x := range c.w.Controllers {
			if x.Name() == op.On {
				return x.Process.Kill()
			}
		}
	case churn.KillMember:
		for _, m := range c.members() {
			if m.Name() == op.On {
				return m.Kill()
			}
		}
	case churn.CreateOrg:
		if _, err = c.w.Weft(ctx, "org", "create", op.On); err == nil {
			err = c.launch(op.On+"/only", op.To, false)
		}
	case churn.RemoveOrg:
		_, err = c.w.Weft(ctx, "org", "remove", op.On)
		for _, l := range c.living(op.On + "/only") {
			err = errors.Join(err, l.process.Stop())
		}
	case churn.Cordon:
		_, err = c.w.Weft(ctx, "host", "cordon", op.On)
	case churn.Uncordon:
		_, err = c.w.Weft(ctx, "host", "uncordon", op.On)
	case churn.CreateGrant:
		var out string
		var made struct{ ID string }
		out, err = c.w.Weft(ctx, "grant", "create", "--from", op.Grant.From, "--to", op.Grant.To, "--tcp", fmt.Sprint(op.Grant.Port), "-o", "json")
		if err == nil {
			err = json.Unmarshal([]byte(out), &made)
		}
		c.rules[op.Grant] = made.ID
	case churn.RemoveGrant:
		_, err = c.w.Weft(ctx, "grant", "remove", c.rules[op.Grant])
	default:
		err = errors.New("nobody knows how")
	}
	return err
}

// drift changes by hand what an agent has set, behind its back.
func (c *churned) drift(ctx context.Context, op churn.Operation) (err error) {
	h := c.w.Hosts[op.On].Host
	switch op.Kind {
	case churn.DriftPeers:
		_, err = inPlane(ctx, h, "sh", "-c", `peer=$(wg show weft0 peers | head -n 1); [ -z "$peer" ] || wg set weft0 peer "$peer" remove`)
	case churn.DriftRoutes:
		_, err = inPlane(ctx, h, "sh", "-c", `route=$(ip -6 route show dev weft0 | grep -o '^[^ ]*/96' | head -n 1); [ -z "$route" ] || ip -6 route del "$route" dev weft0`)
	case churn.DriftFirewall:
		c.mu.Lock()
		i := len(c.windows)
		c.windows = append(c.windows, churn.Window{Host: op.On, From: time.Now()})
		c.mu.Unlock()
		if _, err = inPlane(ctx, h, "nft", "flush", "ruleset"); err != nil {
			break
		}
		began := time.Now()
		err = lab.Await(ctx, "the firewall of "+op.On+" to be back", 15*time.Second, func(ctx context.Context) error {
			rules, err := inPlane(ctx, h, "nft", "list", "chains")
			if err == nil && !strings.Contains(rules, "policy drop") {
				err = errors.New("there are no chains that drop")
			}
			return err
		})
		c.note("the firewall of %s was back after %s", op.On, time.Since(began).Round(time.Millisecond))
		c.mu.Lock()
		c.windows[i].To = time.Now()
		c.mu.Unlock()
	}
	if err != nil && c.w.Hosts[op.On].Agent.Exited() {
		return nil // without an agent there may be no link
	}
	return err
}
