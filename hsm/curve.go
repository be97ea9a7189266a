package hsm

import (
	"crypto/elliptic"
	"encoding/asn1"
	"fmt"
	"math/big"
)

// curve is an elliptic curve as PKCS#11 and X.509 name it. The numbers serve
// public points only.
type curve struct {
	name string
	oid  asn1.ObjectIdentifier
	size int // bytes of a coordinate
	// y² = x³ + ax + b mod p, with base point g; nil for Edwards curves.
	p, a, b, gx, gy *big.Int
}

var (
	p256         = nistCurve(asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}, elliptic.P256())
	p384         = nistCurve(asn1.ObjectIdentifier{1, 3, 132, 0, 34}, elliptic.P384())
	p521         = nistCurve(asn1.ObjectIdentifier{1, 3, 132, 0, 35}, elliptic.P521())
	edwards25519 = &curve{name: "Ed25519", oid: asn1.ObjectIdentifier{1, 3, 101, 112}, size: 32}

	// SEC 2 §2.4.1.
	p256k1 = &curve{
		name: "secp256k1", oid: asn1.ObjectIdentifier{1, 3, 132, 0, 10}, size: 32,
		p:  number("fffffffffffffffffffffffffffffffffffffffffffffffffffffffefffffc2f"),
		a:  big.NewInt(0),
		b:  big.NewInt(7),
		gx: number("79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"),
		gy: number("483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8"),
	}
)

func nistCurve(oid asn1.ObjectIdentifier, c elliptic.Curve) *curve {
	p := c.Params()
	return &curve{name: p.Name, oid: oid, size: (p.BitSize + 7) / 8,
		p: p.P, a: big.NewInt(-3), b: p.B, gx: p.Gx, gy: p.Gy}
}

func number(hex string) *big.Int {
	n, _ := new(big.Int).SetString(hex, 16)
	return n
}

// parameters is the value of CKA_EC_PARAMS.
func (c *curve) parameters() ([]byte, error) {
	b, err := asn1.Marshal(c.oid)
	if err != nil {
		return nil, fmt.Errorf("encoding a curve's name: %w", err)
	}
	return b, nil
}

// point encodes an uncompressed point (SEC 1 §2.3.3).
func (c *curve) point(x, y *big.Int) []byte {
	b := make([]byte, 1+2*c.size)
	b[0] = 4
	x.FillBytes(b[1 : 1+c.size])
	y.FillBytes(b[1+c.size:])
	return b
}

// at returns the two points with this x coordinate, or none.
func (c *curve) at(xBytes []byte) [][]byte {
	x := new(big.Int).SetBytes(xBytes)
	if len(xBytes) != c.size || x.Cmp(c.p) >= 0 {
		return nil
	}
	square := new(big.Int).Mul(x, x)
	square.Add(square, c.a).Mul(square, x).Add(square, c.b).Mod(square, c.p)
	y := new(big.Int).ModSqrt(square, c.p)
	if y == nil {
		return nil
	}
	return [][]byte{c.point(x, y), c.point(x, new(big.Int).Sub(c.p, y))}
}
