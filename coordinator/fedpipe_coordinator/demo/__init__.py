"""The demo: a broker, a coordinator and unlike agents on one machine, and the data they train on."""
